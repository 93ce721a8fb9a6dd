"""State of every part, asked at the moment: shards, embedders, processes of this machine."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from typing import Literal

import structlog

from actors.messages import EmbedderRole, EmbedderStatus, ShardStatus
from contract.errors import RiverlensError
from contract.events import Receipt
from contract.settings import Settings
from contract.telemetry import LogField
from serving.catalog import Catalog, ServedCollection
from serving.dependencies import Dependencies, Shard
from serving.lag import Lag, Lags
from serving.readiness import ProcessBody, Readiness, ShardSummary
from serving.schemas import (
    CollectionAnswer,
    CollectionStatistics,
    EmbedderBody,
    ShardBody,
)

_log = structlog.get_logger()
# An actor that does not say how it is within this time counts as unavailable.
STATUS_TIMEOUT_S = 2.0
# An upload does not wait longer to know how far the shards are behind.
_LOOK_WITHIN_S = 0.25
UP_FILE = "up.json"

ShardReport = ShardStatus | str


class SystemState:
    """Asks shards and embedders how they are."""

    def __init__(self, dependencies: Dependencies, catalog: Catalog, timeout_s: float = STATUS_TIMEOUT_S) -> None:
        self._dependencies = dependencies
        self._catalog = catalog
        self._timeout_s = timeout_s
        self.lags = Lags()
        self._looks: dict[str, asyncio.Task[None]] = {}

    async def shards(self, collection: ServedCollection) -> list[tuple[int, int, ShardReport]]:
        """(shard, replica, status or why there is none) of every replica."""

        async def ask(shard: Shard) -> ShardReport:
            try:
                return await asyncio.wait_for(shard.status(), self._timeout_s)
            except RiverlensError as error:
                return error.detail
            except TimeoutError:
                return f"no answer within {self._timeout_s:g} s"

        places = [(s, r) for s, replicas in enumerate(collection.shards) for r in range(len(replicas))]
        reports = await asyncio.gather(*(ask(collection.shards[s][r]) for s, r in places))
        answering = [report for report in reports if isinstance(report, ShardStatus)]
        self.lags.observe(collection.spec.name, collection.spec.incarnation, answering)
        return [(s, r, report) for (s, r), report in zip(places, reports, strict=True)]

    async def lag(self, collection: ServedCollection) -> Lag:
        """How far a collection is behind, looked at no longer than LOOK_S ago if its shards answer quickly.

        Callers share a look, and none waits for shards that are slow: it then counts what was known before.
        """
        name, incarnation = collection.spec.name, collection.spec.incarnation
        if self.lags.needs_look(name, incarnation):
            if name not in self._looks:
                self._looks[name] = asyncio.create_task(self._look(collection))
            await asyncio.wait({self._looks[name]}, timeout=_LOOK_WITHIN_S)
        return self.lags.lag(name, incarnation)

    def logged(self, collection: ServedCollection, receipt: Receipt) -> Lag:
        """Take note of an event that was logged; what stands before it."""
        return self.lags.logged(collection.spec.name, collection.spec.incarnation, receipt)

    async def _look(self, collection: ServedCollection) -> None:
        try:
            await self.shards(collection)
            live = await self._catalog.list()
            self.lags.keep([(one.spec.name, one.spec.incarnation) for one in live])
        except RiverlensError as error:
            told = {LogField.COLLECTION: collection.spec.name, LogField.ERROR: error.detail}
            _log.warning("how far the shards are behind is unknown", **told)
        finally:
            del self._looks[collection.spec.name]

    async def embedders(self, models: Iterable[str]) -> list[EmbedderBody]:
        """Every embedder of every model in use, for ingest and for queries."""
        settings = self._dependencies.settings
        roles: tuple[tuple[EmbedderRole, int], ...] = (
            ("ingest", settings.embedders),
            ("query", settings.query_embedders),
        )
        groups = [(model, role, count) for model in sorted(set(models)) for role, count in roles]
        answers = await asyncio.gather(*(self._embedder_group(*group) for group in groups))
        return [body for group in answers for body in group]

    async def _embedder_group(self, model: str, role: EmbedderRole, count: int) -> list[EmbedderBody]:
        client = self._dependencies.make_embedder(model, role, count)
        try:
            statuses: list[EmbedderStatus | str] = [
                answer if isinstance(answer, EmbedderStatus) else answer.detail
                for answer in await asyncio.wait_for(client.statuses(), self._timeout_s)
            ]
        except TimeoutError:
            statuses = [f"no answer within {self._timeout_s:g} s"] * count
        return [_embedder_body(model, role, index, status) for index, status in enumerate(statuses)]

    async def statistics(self, collection: ServedCollection) -> CollectionStatistics:
        """Counts and shards of one collection."""
        reports, embedders = await asyncio.gather(self.shards(collection), self.embedders([collection.spec.model]))
        points: dict[int, int] = {}
        deleted: dict[int, int] = {}
        for shard, _, report in reports:
            if isinstance(report, ShardStatus):
                points[shard] = max(report.points, points.get(shard, 0))
                deleted[shard] = max(report.deleted, deleted.get(shard, 0))
        return CollectionStatistics(
            **collection_answer(collection).model_dump(),
            embedders=embedders,
            lag=self.lags.lag(collection.spec.name, collection.spec.incarnation).body(),
            points=sum(points.values()),
            deleted=sum(deleted.values()),
            shards=[ShardBody.model_validate(_shard_fields(*report)) for report in reports],
        )

    async def readiness(self) -> Readiness:
        """Whether everything answers; `missing` has a sentence for each part that does not."""
        collections = await self._catalog.list()
        models = [collection.spec.model for collection in collections]
        embedders, reports = await asyncio.gather(
            self.embedders(models), asyncio.gather(*(self.shards(collection) for collection in collections))
        )
        missing = [] if collections else ["there is no collection"]
        summaries: list[ShardSummary] = []
        for collection, shards in zip(collections, reports, strict=True):
            name = collection.spec.name
            if not collection.spec.fingerprint:
                missing.append(f"collection {name}: its encoder is starting")
            for shard, replica, report in shards:
                fields = _shard_fields(shard, replica, report)
                summaries.append(ShardSummary.model_validate({"collection": name, **fields}))
                if fields["state"] != "ready":
                    reason = f" ({fields['error']})" if fields["error"] else ""
                    missing.append(f"collection {name}: shard {shard}, replica {replica} is {fields['state']}{reason}")
        missing += [f"embedder {e.model}/{e.role}/{e.index}: {e.error}" for e in embedders if e.error]
        return Readiness(
            status="not ready" if missing else "ready",
            missing=missing,
            processes=local_processes(self._dependencies.settings),
            embedders=embedders,
            shards=summaries,
        )


def collection_answer(collection: ServedCollection) -> CollectionAnswer:
    """Parameters of a collection."""
    spec = collection.spec
    state: Literal["creating", "ready"] = "ready" if spec.fingerprint else "creating"
    return CollectionAnswer(
        name=spec.name,
        state=state,
        model=spec.model,
        fingerprint=spec.fingerprint,
        dimension=spec.dimension,
        partitions=spec.partitions,
        shards_total=spec.shards,
        replicas=spec.replicas,
        m=spec.m,
        ef_construction=spec.ef_construction,
        ef_search=spec.ef_search,
        quantization=spec.quantization,
        vector_type=spec.vector_type,
        filter_fields=spec.filter_fields,
        duplicates=spec.duplicates,
        incarnation=spec.incarnation,
        created_at_ms=spec.created_at_ms,
    )


def local_processes(settings: Settings) -> list[ProcessBody]:
    """The processes `riverlens up` runs in this home folder; none where something else runs them."""
    try:
        known = json.loads((settings.home_path / "run" / UP_FILE).read_text())["processes"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return []
    return [ProcessBody(name=name, pid=pid, alive=is_alive(pid)) for name, pid in known.items()]


def is_alive(pid: int) -> bool:
    """Whether a process of this number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _embedder_body(model: str, role: EmbedderRole, index: int, status: EmbedderStatus | str) -> EmbedderBody:
    known = status if isinstance(status, EmbedderStatus) else None
    return EmbedderBody(
        model=model,
        role=role,
        index=index,
        state="ready" if known else "unavailable",
        error=status if isinstance(status, str) else None,
        device=known.device if known else None,
        pid=known.pid if known else None,
        images_encoded=known.images_encoded if known else None,
        texts_encoded=known.texts_encoded if known else None,
    )


def _shard_fields(shard: int, replica: int, report: ShardReport) -> dict[str, object]:
    if isinstance(report, str):
        nothing: dict[str, object] = {
            "points": 0,
            "deleted": 0,
            "growing": 0,
            "dead": 0,
            "store_bytes": 0,
            "recall_samples": 0,
            "lexical_points": None,
        }
        offsets: dict[str, object] = {"applied_offsets": {}, "log_offsets": {}, "high_watermarks": {}}
        unknown = dict.fromkeys(
            ("pid", "consumer_lag", "staleness_s", "snapshot_at_ms", "snapshot_bytes", "quantization", "recall_at_10")
        )
        return {
            "shard": shard,
            "replica": replica,
            "state": "unavailable",
            "error": report,
            **nothing,
            **offsets,
            **unknown,
        }
    return {
        "shard": shard,
        "replica": replica,
        "state": report.state,
        "error": report.error,
        "pid": report.pid,
        "points": report.points,
        "deleted": report.deleted,
        "growing": report.growing,
        "applied_offsets": _by_name(report.freshness.applied_offsets),
        "log_offsets": _by_name(report.log_offsets),
        "high_watermarks": _by_name(report.high_watermarks),
        "consumer_lag": report.consumer_lag,
        "staleness_s": report.freshness.staleness_s,
        "store_bytes": report.store_bytes,
        "snapshot_at_ms": report.snapshot_at_ms,
        "snapshot_bytes": report.snapshot_bytes,
        "dead": report.dead,
        "quantization": report.quantization,
        "recall_at_10": report.recall_at_10,
        "recall_samples": report.recall_samples,
        "lexical_points": report.lexical_points,
    }


def _by_name(offsets: dict[int, int]) -> dict[str, int]:
    return {str(partition): offset for partition, offset in sorted(offsets.items())}
