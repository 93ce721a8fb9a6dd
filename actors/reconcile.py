"""Desired state → actors: which should run, and what to do about each, as pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

from actors.messages import EmbedderRole, embedder_name, shard_name
from contract.events import CollectionSpec
from contract.settings import Settings

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 30.0
_FORGIVEN_AFTER_S = 60.0
_SILENT_S = 30.0
# The first start of an embedder fetches its weights.
_SILENT_AT_START_S = 600.0

EMBEDDER_PREFIX = "embedder/"
SHARD_PREFIX = "shard/"


class EmbedderPlan(Struct, frozen=True):
    """An embedder that should run."""

    model: str
    role: EmbedderRole
    index: int

    @property
    def name(self) -> str:
        """Ray name."""
        return embedder_name(self.model, self.role, self.index)


class ShardPlan(Struct, frozen=True):
    """A shard replica that should run."""

    spec: CollectionSpec
    shard: int
    replica: int

    @property
    def name(self) -> str:
        """Ray name."""
        return shard_name(self.spec.name, self.spec.incarnation, self.shard, self.replica)


Plan = EmbedderPlan | ShardPlan

# A share of a custom resource so small that it says where an actor may run and never how many may.
_ON_THAT_NODE = 0.001


def claims(plan: Plan, settings: Settings) -> dict[str, Any]:
    """What an actor claims from Ray, as its options: processors, GPUs, and the kind of node it runs on."""
    match plan:
        case EmbedderPlan():
            claimed: dict[str, Any] = {"num_cpus": settings.embedder_threads, "num_gpus": settings.embedder_gpus}
            node_resource = settings.embedder_node_resource
        case ShardPlan():
            claimed = {"num_cpus": settings.shard_cpus}
            node_resource = settings.shard_node_resource
    if node_resource is not None:
        claimed["resources"] = {node_resource: _ON_THAT_NODE}
    return claimed


class Health(StrEnum):
    """What is known of an actor.

    `absent`: nobody bears its name. `waiting`: it exists and has not answered yet. `healthy`: its
    last answer was good. `failed`: it answered that it cannot work, or it died.
    """

    ABSENT = "absent"
    WAITING = "waiting"
    HEALTHY = "healthy"
    FAILED = "failed"


class Record(Struct):
    """The supervisor's memory of one actor; times are monotonic seconds."""

    health: Health = Health.ABSENT
    failures: int = 0
    start_after: float = 0.0
    healthy_since: float | None = None


def desired(
    specs: Mapping[str, CollectionSpec], settings: Settings, described_next: Collection[str] = ()
) -> dict[str, Plan]:
    """Every actor that should run, by name.

    A collection without a fingerprint is not described yet: it has embedders and no shards.
    `described_next` names models that need one query embedder, to be described before a
    collection of theirs exists.
    """
    plans: dict[str, Plan] = {}
    for model in described_next:
        first = EmbedderPlan(model, "query", 0)
        plans[first.name] = first
    for model in dict.fromkeys(spec.model for spec in specs.values()):
        roles: tuple[tuple[EmbedderRole, int], ...] = (
            ("query", settings.query_embedders),
            ("ingest", settings.embedders),
        )
        for role, count in roles:
            for index in range(count):
                embedder = EmbedderPlan(model, role, index)
                plans[embedder.name] = embedder
    for spec in specs.values():
        if not spec.fingerprint:
            continue
        for replica in range(spec.replicas):
            for shard in range(spec.shards):
                one = ShardPlan(spec, shard, replica)
                plans[one.name] = one
    return plans


def observe(record: Record, health: Health, now: float) -> None:
    """Take in what was seen of an actor; a failure sets the time before which it is not started again."""
    if health is Health.FAILED:
        record.failures += 1
        record.start_after = now + min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (record.failures - 1))
        record.healthy_since = None
        record.health = Health.ABSENT
        return
    if health is Health.HEALTHY:
        record.healthy_since = now if record.healthy_since is None else record.healthy_since
        if now - record.healthy_since >= _FORGIVEN_AFTER_S:
            record.failures = 0
    record.health = health


def is_too_silent(record: Record, silent_s: float) -> bool:
    """Whether an actor that has not answered for `silent_s` is to be replaced; one that starts has longer."""
    return silent_s > (_SILENT_AT_START_S if record.healthy_since is None else _SILENT_S)


def to_start(plans: Mapping[str, Plan], records: Mapping[str, Record], now: float) -> list[Plan]:
    """Plans whose actor is absent and whose pause after a failure is over."""
    return [
        plan
        for name, plan in plans.items()
        if (record := records.get(name)) is None or (record.health is Health.ABSENT and now >= record.start_after)
    ]


def to_stop(plans: Mapping[str, Plan], running: Collection[str]) -> list[str]:
    """Names that run and are not desired."""
    return [name for name in running if name not in plans]
