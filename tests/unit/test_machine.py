"""What is said of a machine is its own, or its container's where that has less."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.machine import machine_state

MIB = 1024 * 1024


def cgroup(folder: Path, limit: str, used: int, droppable: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {droppable}\nactive_file 7\n")
    return folder


def test_without_a_container_the_machine_counts(tmp_path: Path) -> None:
    here = machine_state(tmp_path / "not" / "made" / "yet", cgroup=tmp_path)
    assert 10 * MIB < here.resident_bytes < here.memory_bytes
    assert 0 < here.memory_available_bytes < here.memory_bytes
    assert 0 < here.disk_free_bytes < here.disk_bytes


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    here = machine_state(tmp_path, cgroup(tmp_path, str(100 * MIB), used=60 * MIB, droppable=20 * MIB))
    assert (here.memory_bytes, here.memory_available_bytes) == (100 * MIB, 60 * MIB)


@pytest.mark.parametrize("limit", ["max", str(2**60)])
def test_a_limit_that_limits_nothing_is_none(tmp_path: Path, limit: str) -> None:
    total = machine_state(tmp_path, cgroup=tmp_path).memory_bytes
    assert machine_state(tmp_path, cgroup(tmp_path, limit, 60 * MIB, 0)).memory_bytes == total
