"""Bodies that say how the whole system is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from serving.schemas import EmbedderBody, ShardBody


class ShardSummary(ShardBody):
    """One shard replica, with its collection."""

    collection: str


class ProcessBody(BaseModel):
    """One process that `riverlens up` runs on this machine."""

    name: str
    pid: int
    alive: bool


class Readiness(BaseModel):
    """Whether every part answers and every shard has caught up with the log as it was at its start."""

    status: Literal["ready", "not ready"]
    missing: list[str]
    processes: list[ProcessBody]
    embedders: list[EmbedderBody]
    shards: list[ShardSummary]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"]
