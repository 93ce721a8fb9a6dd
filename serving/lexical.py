"""Asks the lexical index of every shard: queries that come while calls are under way share the next ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from actors.messages import LexicalQuery, LexicalSearch, ShardSearchResult
from serving.dependencies import Shard
from serving.gathering import Gathering
from serving.metrics import Metrics
from serving.replicas import FanOutAnswer, Shards


@dataclass(frozen=True, slots=True)
class _Question:
    query: LexicalQuery
    with_payload: bool
    fresh: bool
    request_id: str


class LexicalFanOut:
    """Asks every shard of one collection by words. For one event loop."""

    def __init__(self, shards: Sequence[Sequence[Shard]], deadline_s: float, *, random: Random | None = None) -> None:
        """`shards[s][r]` is replica r of shard s; `deadline_s` counts from when a batch leaves."""
        metrics = Metrics().fan_out("", len(shards))
        self._shards = Shards(shards, _search, deadline_s, metrics, "lexical index", random)
        self._gathering = Gathering(self._ask)

    async def search(
        self, query: LexicalQuery, *, with_payload: bool = True, fresh: bool = False, request_id: str = ""
    ) -> FanOutAnswer:
        """Candidates for one query, with BM25 scores.

        Args:
            query: Words, how many, and the filter.
            with_payload: Whether candidates carry their payload.
            fresh: Whether the indexes take in everything that is applied before they answer.
            request_id: Of the search, for the logs of the shards.

        Raises:
            ShardUnavailable: no shard answered before the deadline; retryable.
        """
        return await self._gathering.ask(_Question(query, with_payload, fresh, request_id))

    async def _ask(self, batch: Sequence[_Question]) -> list[FanOutAnswer]:
        request = LexicalSearch(
            queries=tuple(question.query for question in batch),
            with_payload=any(question.with_payload for question in batch),
            fresh=any(question.fresh for question in batch),
            request_ids=tuple(question.request_id for question in batch),
        )
        return await self._shards.ask(request, request.request_ids)


async def _search(shard: Shard, request: LexicalSearch) -> ShardSearchResult:
    return await shard.search_lexical(request)
