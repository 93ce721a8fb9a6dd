"""Desired state → actors, as pure functions."""

from __future__ import annotations

import msgspec

from actors.reconcile import (
    EmbedderPlan,
    Health,
    Record,
    ShardPlan,
    claims,
    desired,
    is_too_silent,
    observe,
    to_start,
    to_stop,
)
from contract.events import CollectionSpec
from contract.settings import Settings

SPEC = CollectionSpec(
    name="images",
    incarnation="one",
    partitions=4,
    shards=4,
    replicas=2,
    model="offline",
    fingerprint="f",
    dimension=8,
    created_at_ms=0,
)


def test_a_collection_wants_its_shards_and_one_set_of_embedders_per_model() -> None:
    other = msgspec.structs.replace(SPEC, name="other", shards=1, replicas=1)
    plans = desired({"images": SPEC, "other": other}, Settings(embedders=2, query_embedders=1))
    shards = [plan for plan in plans.values() if isinstance(plan, ShardPlan)]
    assert len(shards) == 4 * 2 + 1
    assert sorted(name for name in plans if name.startswith("embedder/")) == [
        "embedder/offline/ingest/0",
        "embedder/offline/ingest/1",
        "embedder/offline/query/0",
    ]


def test_a_collection_that_is_not_described_yet_has_embedders_and_no_shards() -> None:
    plans = desired({"images": msgspec.structs.replace(SPEC, fingerprint="", dimension=0)}, Settings())
    assert set(plans) == {"embedder/offline/query/0", "embedder/offline/ingest/0"}
    assert set(desired({}, Settings(), described_next=("tiny",))) == {"embedder/tiny/query/0"}


def test_a_collection_made_anew_under_its_old_name_has_other_actors() -> None:
    before = desired({"images": SPEC}, Settings())
    after = desired({"images": msgspec.structs.replace(SPEC, incarnation="two")}, Settings())
    stopped = to_stop(after, list(before))
    assert len(stopped) == 8
    assert all(name.startswith("shard/images/one/") for name in stopped)


def test_a_failing_actor_is_started_again_after_growing_pauses() -> None:
    plans = desired({"images": SPEC}, Settings())
    name = next(iter(plans))
    records = {name: Record() for name in plans}
    now, pauses = 100.0, []
    for _ in range(12):
        observe(records[name], Health.FAILED, now)
        assert plans[name] not in to_start(plans, records, now)
        pauses.append(records[name].start_after - now)
        now = records[name].start_after
        assert plans[name] in to_start(plans, records, now)
        observe(records[name], Health.WAITING, now)
        assert plans[name] not in to_start(plans, records, now)
    assert pauses == sorted(pauses)
    assert pauses[0] < 1
    assert pauses[-1] == 30.0


def test_a_long_healthy_life_is_forgiven_its_failures() -> None:
    record = Record()
    observe(record, Health.FAILED, 0.0)
    observe(record, Health.HEALTHY, 10.0)
    observe(record, Health.HEALTHY, 30.0)
    assert record.failures == 1
    observe(record, Health.HEALTHY, 71.0)
    assert record.failures == 0


def test_what_nobody_has_seen_is_started() -> None:
    plans = desired({"images": SPEC}, Settings())
    assert to_start(plans, {}, 0.0) == list(plans.values())


def test_an_actor_that_starts_may_be_silent_for_longer() -> None:
    starting, running = Record(health=Health.WAITING), Record()
    observe(running, Health.HEALTHY, 0.0)
    assert not is_too_silent(starting, 60.0)
    assert is_too_silent(running, 60.0)
    assert is_too_silent(starting, 3600.0)


def test_actors_claim_the_nodes_that_are_meant_for_them() -> None:
    shard, embedder = ShardPlan(SPEC, 0, 0), EmbedderPlan("offline", "ingest", 0)
    anywhere = Settings(shard_cpus=0.25, embedder_threads=2, embedder_gpus=0.5)
    assert claims(shard, anywhere) == {"num_cpus": 0.25}
    assert claims(embedder, anywhere) == {"num_cpus": 2, "num_gpus": 0.5}
    apart = anywhere.model_copy(update={"shard_node_resource": "shards", "embedder_node_resource": "embedders"})
    assert claims(shard, apart) == {"num_cpus": 0.25, "resources": {"shards": 0.001}}
    assert claims(embedder, apart)["resources"] == {"embedders": 0.001}
