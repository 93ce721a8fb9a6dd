"""What a collection leaves behind is removed once it is known to be over."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from actors.ended import EndedCollections
from contract.errors import ObjectStoreUnavailable
from contract.settings import Settings


class Remote:
    """Records what is removed; waits until it may."""

    def __init__(self) -> None:
        self.removed: list[tuple[str, str]] = []
        self.away = False
        self.done = threading.Event()

    def __call__(self, _settings: Settings, collection: str, incarnation: str) -> None:
        try:
            if self.away:
                raise ObjectStoreUnavailable("away")
            self.removed.append((collection, incarnation))
        finally:
            self.done.set()


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def ended(tmp_path: Path, remote: Remote) -> EndedCollections:
    return EndedCollections(Settings(home=tmp_path), remote)


def step(ended: EndedCollections, remote: Remote, over: set[tuple[str, str]]) -> None:
    """One step, and the removal that it began."""
    remote.done.clear()
    ended.step(lambda *one: one in over)
    if ended._clearing is not None:
        assert remote.done.wait(30)
        ended._thread.submit(lambda: None).result(30)
        ended.step(lambda *_: False)


def test_stores_and_snapshots_of_what_is_over_go_and_the_others_stay(
    ended: EndedCollections, remote: Remote, tmp_path: Path
) -> None:
    for part in ("shards", "snapshots"):
        for incarnation in ("one", "two"):
            (tmp_path / part / "birds" / incarnation / "0-0").mkdir(parents=True)
    step(ended, remote, {("birds", "one")})
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*/*")) == [
        "shards/birds/two",
        "snapshots/birds/two",
    ]
    assert remote.removed == [("birds", "one")]
    step(ended, remote, {("birds", "one")})
    assert remote.removed == [("birds", "one")], "once"


def test_the_object_store_is_cleared_without_a_local_trace_and_again_while_it_is_away(
    ended: EndedCollections, remote: Remote
) -> None:
    ended.note([("birds", "one"), ("fish", "two")])
    step(ended, remote, set())
    assert remote.removed == []
    remote.away = True
    step(ended, remote, {("birds", "one")})
    remote.away = False
    step(ended, remote, {("birds", "one")})
    assert remote.removed == [("birds", "one")]
    ended.close()
