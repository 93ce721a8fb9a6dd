"""The supervisor: keeps the actors of every collection alive.

`python -m actors.supervisor` reads the desired state from the collections topic and compares it
with the actors about once a second. It owns nothing: actors are named and detached, so that a
supervisor that starts again adopts those that live.
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import ray
import structlog
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from actors.cluster import connect
from actors.embedder import Embedder
from actors.log.collections import create_collection
from actors.log.connection import bootstrap_servers
from actors.log.registry import CollectionRegistry
from actors.logs import configure
from actors.messages import RAY_NAMESPACE, EncoderDescription, ShardStatus
from actors.reconcile import EmbedderPlan, Health, Plan, Record, ShardPlan, desired, observe, to_start, to_stop
from actors.shard import Shard
from contract.errors import BrokerUnavailable, RiverlensError
from contract.events import CollectionSpec
from contract.settings import Settings, load_settings
from contract.telemetry import LogField

_log = structlog.get_logger()
_TICK_S = 0.5
_CLOSE_WITHIN_S = 15.0


class Supervisor:
    """Brings the actors in line with the collections, one `tick` at a time."""

    def __init__(self, settings: Settings, registry: CollectionRegistry) -> None:
        self._settings = settings
        self._registry = registry
        self._specs: dict[str, CollectionSpec] = {}
        self._plans: dict[str, Plan] = {}
        self._records: dict[str, Record] = {}
        self._handles: dict[str, ActorHandle[Any]] = {}
        self._pings: dict[str, Any] = {}
        self._descriptions: dict[str, EncoderDescription] = {}

    def tick(self) -> None:
        """Look at every actor once and act. Raises RiverlensError when a collection cannot be made."""
        try:
            specs = self._registry.refresh()
        except BrokerUnavailable as error:
            # The actors can go on with what is known; only changes of the desired state wait.
            _log.warning("desired state cannot be read", **{LogField.ERROR: error.detail})
        else:
            self._remove_dropped(specs)
            self._specs = specs
            self._complete_collections()
        first = () if self._default_exists() else (self._settings.model,)
        self._plans = desired(self._specs, self._settings, described_next=first)
        for name in to_stop(self._plans, list(self._handles)):
            self._stop(name)
        self._listen()
        for plan in to_start(self._plans, self._records, time.monotonic()):
            self._start(plan)

    # Actors

    def _start(self, plan: Plan) -> None:
        record = self._records.setdefault(plan.name, Record())
        options: dict[str, Any] = {
            "name": plan.name,
            "namespace": RAY_NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD",
        }
        settings = self._settings
        match plan:
            case EmbedderPlan():
                options |= {"num_cpus": settings.embedder_threads, "num_gpus": settings.embedder_gpus}
                handle = Embedder.options(**options).remote(settings, plan.model, plan.name)  # type: ignore[attr-defined]
            case ShardPlan():
                options |= {"num_cpus": settings.shard_cpus}
                handle = Shard.options(**options).remote(settings, plan.spec, plan.shard, plan.replica)  # type: ignore[attr-defined]
        _log.info("actor started or adopted", name=plan.name, failures=record.failures)
        self._handles[plan.name] = handle
        observe(record, Health.WAITING, time.monotonic())

    def _listen(self) -> None:
        """Ask every actor for its status; at most one question per actor is open."""
        for name, handle in self._handles.items():
            if name not in self._pings:
                plan = self._plans[name]
                undescribed = isinstance(plan, EmbedderPlan) and plan.model not in self._descriptions
                self._pings[name] = (handle.describe if undescribed else handle.status).remote()
        if not self._pings:
            return
        answered, _ = ray.wait(list(self._pings.values()), num_returns=len(self._pings), timeout=_TICK_S)
        for name, ping in list(self._pings.items()):
            if ping in answered:
                del self._pings[name]
                self._take_answer(name, ping)

    def _take_answer(self, name: str, ping: Any) -> None:
        record, now = self._records[name], time.monotonic()
        try:
            answer = ray.get(ping, timeout=_TICK_S)
        except (ActorUnavailableError, GetTimeoutError):
            return  # a lost connection says nothing of the actor; the next ping will
        except RayTaskError as error:
            reason = error.cause.detail if isinstance(error.cause, RiverlensError) else str(error)
            self._replace(name, reason)
        except RayActorError as error:
            self._replace(name, str(error).splitlines()[0])
        else:
            if isinstance(answer, EncoderDescription):
                self._descriptions[self._plans[name].model] = answer  # type: ignore[union-attr]
            if isinstance(answer, ShardStatus) and answer.state == "failed":
                self._replace(name, answer.error or "it reports that it failed")
                return
            if record.health is not Health.HEALTHY:
                _log.info("actor is healthy", name=name)
            observe(record, Health.HEALTHY, now)

    def _replace(self, name: str, reason: str) -> None:
        record = self._records[name]
        observe(record, Health.FAILED, time.monotonic())
        pause_s = max(0.0, record.start_after - time.monotonic())
        _log.warning(
            "actor failed and is started again",
            name=name,
            failures=record.failures,
            pause_s=round(pause_s, 2),
            **{LogField.ERROR: reason},
        )
        ray.kill(self._handles.pop(name), no_restart=True)

    def _stop(self, name: str) -> None:
        handle = self._handles.pop(name)
        self._pings.pop(name, None)
        self._records.pop(name, None)
        self._close([handle] if name.startswith("shard/") else [])
        ray.kill(handle, no_restart=True)
        _log.info("actor stopped", name=name)

    @staticmethod
    def _close(shards: list[ActorHandle[Any]]) -> None:
        """Let shards close their stores; one that does not is killed, which loses nothing either."""
        closing: list[Any] = [shard.close.remote() for shard in shards]
        if not closing:
            return
        done, late = ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_WITHIN_S)
        for ref in done:
            try:
                ray.get(ref)
            except (RayActorError, RayTaskError) as error:
                _log.warning("a shard did not close", **{LogField.ERROR: str(error).splitlines()[0]})
        if late:
            _log.warning("shards did not close in time", **{LogField.COUNT: len(late)})

    def stop_all(self) -> None:
        """Close the shards and end every actor, for a Ray cluster that ends with this instance."""
        self._close([handle for name, handle in self._handles.items() if name.startswith("shard/")])
        for handle in self._handles.values():
            ray.kill(handle, no_restart=True)
        self._handles.clear()

    # Collections

    def _default_exists(self) -> bool:
        return self._settings.collection in self._specs

    def _complete_collections(self) -> None:
        """Make the default collection at the first start, and fill in what only an encoder knows."""
        settings = self._settings
        description = self._descriptions.get(settings.model)
        if not self._default_exists() and description is not None:
            spec = create_collection(
                settings,
                self._registry,
                settings.collection,
                description,
                partitions=settings.partitions,
                shards=settings.shards,
                replicas=settings.replicas,
                m=settings.hnsw_m,
                ef_construction=settings.hnsw_ef_construction,
                ef_search=settings.hnsw_ef_search,
            )
            self._specs[spec.name] = spec
        for spec in list(self._specs.values()):
            found = self._descriptions.get(spec.model)
            if not spec.fingerprint and found is not None:
                complete = msgspec.structs.replace(
                    spec, model=found.model, fingerprint=found.fingerprint, dimension=found.dimension
                )
                self._registry.put(complete)
                self._specs[spec.name] = complete

    def _remove_dropped(self, specs: dict[str, CollectionSpec]) -> None:
        """Stop the shards of collections that ended and remove their stores."""
        for name, old in self._specs.items():
            new = specs.get(name)
            if new is not None and new.incarnation == old.incarnation:
                continue
            for actor in [n for n, p in self._plans.items() if isinstance(p, ShardPlan) and p.spec.name == name]:
                if actor in self._handles:
                    self._stop(actor)
            folder = store_folder(self._settings, old)
            if folder.exists():
                shutil.rmtree(folder)
            _log.info("collection ended", **{LogField.COLLECTION: name})


def store_folder(settings: Settings, spec: CollectionSpec) -> Path:
    """Folder of all stores of one incarnation of a collection on this machine."""
    return settings.home_path / "shards" / spec.name / spec.incarnation


def main() -> int:
    """Run the `supervisor` process of the Procfile; the exit status."""
    settings = load_settings()
    configure(settings, "supervisor")
    stopping = threading.Event()
    try:
        bootstrap_servers(settings)
        connect(settings, forward_logs=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        registry = CollectionRegistry(settings)
        supervisor = Supervisor(settings, registry)
        while not stopping.is_set():
            supervisor.tick()
            stopping.wait(_TICK_S)
        registry.close()
        if settings.ray_address is None:
            supervisor.stop_all()
        ray.shutdown()
    except RiverlensError as error:
        _log.error("supervisor stops", **{LogField.CODE: error.code, LogField.ERROR: error.detail})
        return 1
    _log.info("supervisor stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
