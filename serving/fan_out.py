"""One batched call per shard: concurrent queries share it, one deadline bounds it, gaps are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from actors.messages import FloatMatrix, ShardQuery, ShardSearch, ShardSearchResult
from serving.dependencies import Shard
from serving.gathering import BATCH_MAX, UNDER_WAY_MAX, WINDOW_S, Gathering
from serving.metrics import FanOutMetrics, Metrics
from serving.replicas import FanOutAnswer, Shards


@dataclass(frozen=True, slots=True)
class _Question:
    vector: FloatMatrix
    query: ShardQuery
    with_payload: bool
    request_id: str


class FanOut:
    """Asks every shard of one collection by vector. For one event loop."""

    def __init__(
        self,
        shards: Sequence[Sequence[Shard]],
        fingerprint: str,
        deadline_s: float,
        window_s: float = WINDOW_S,
        batch_max: int = BATCH_MAX,
        metrics: FanOutMetrics | None = None,
        *,
        under_way_max: int = UNDER_WAY_MAX,
        random: Random | None = None,
    ) -> None:
        """`shards[s][r]` is replica r of shard s; `deadline_s` counts from when a batch leaves."""
        self._fingerprint = fingerprint
        metrics = metrics or Metrics().fan_out("", len(shards))
        self._shards = Shards(shards, _search, deadline_s, metrics, "shard replica", random)
        self._gathering = Gathering(self._ask, window_s=window_s, batch_max=batch_max, under_way_max=under_way_max)

    async def search(
        self, vector: FloatMatrix, query: ShardQuery, *, with_payload: bool = True, request_id: str = ""
    ) -> FanOutAnswer:
        """Candidates for one query vector, (d,) float32.

        Raises:
            ShardUnavailable: no shard answered before the deadline; retryable.
            FingerprintMismatch: a shard holds vectors of another encoder.
        """
        return await self._gathering.ask(_Question(vector, query, with_payload, request_id))

    async def _ask(self, batch: Sequence[_Question]) -> list[FanOutAnswer]:
        request = ShardSearch(
            fingerprint=self._fingerprint,
            vectors=np.stack([question.vector for question in batch]).astype(np.float32, copy=False),
            queries=tuple(question.query for question in batch),
            with_payload=any(question.with_payload for question in batch),
            request_ids=tuple(question.request_id for question in batch),
        )
        return await self._shards.ask(request, request.request_ids)


async def _search(shard: Shard, request: ShardSearch) -> ShardSearchResult:
    return await shard.search(request)
