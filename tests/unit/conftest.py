"""Unit tests start no cluster and no broker: a try to is a failure."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import ray


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a unit test tried to start or join a Ray cluster")

    monkeypatch.setattr(ray, "init", refuse)
