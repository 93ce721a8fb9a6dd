"""The folder and the store of the known-bytes table: who may have them, and what happens to bad ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import faust
import pytest
from faust.types import TP
from structlog.testing import capture_logs

from actors.log.producer import LogProducer, OutgoingRecord
from actors.log.records import LogIdentity
from contract.topics import KNOWN_BYTES_TOPIC, known_bytes_key
from streams.known_bytes import STORE, TABLE_CLASS, KnownBytesTable, TableFolder

HERE, THERE = LogIdentity("cluster", "topic"), LogIdentity("cluster", "topic made anew")


def test_two_processes_of_one_home_have_folders_of_their_own(tmp_path: Path) -> None:
    first = TableFolder(tmp_path, HERE)
    second = TableFolder(tmp_path, HERE)
    assert first.path != second.path
    kept = first.path
    (kept / "data").write_text("x")
    first.close()
    first.close()
    again = TableFolder(tmp_path, HERE)
    assert again.path == kept
    assert (again.path / "data").read_text() == "x"


def test_a_folder_of_another_log_is_thrown_away(tmp_path: Path) -> None:
    before = TableFolder(tmp_path, HERE)
    (before.path / "data").write_text("x")
    before.close()
    after = TableFolder(tmp_path, THERE)
    assert after.path != before.path
    assert not before.path.exists()


class _Changelog:
    """A producer whose records come back through the table's own way of reading its changelog."""

    def __init__(self) -> None:
        self.table: Any = None
        self.end = 0

    async def send_all(self, records: list[OutgoingRecord]) -> list[int]:
        for record in records:
            message = SimpleNamespace(
                tp=TP(record.topic, record.partition),
                partition=record.partition,
                offset=self.end,
                key=record.key,
                value=record.value,
            )
            self.table.apply_changelog_batch([SimpleNamespace(message=message)])
            self.end += 1
        return list(range(len(records)))


@pytest.fixture
def table(tmp_path: Path) -> Iterator[KnownBytesTable]:
    made = _table(tmp_path)
    yield made
    _close(made)


def _table(folder: Path) -> KnownBytesTable:
    changelog = _Changelog()
    app = faust.App("test", broker="kafka://nowhere", store=STORE, datadir=folder, GlobalTable=TABLE_CLASS)
    table = KnownBytesTable(app, cast(LogProducer, changelog))
    changelog.table = app.tables[KNOWN_BYTES_TOPIC]
    return table


def _close(table: KnownBytesTable) -> None:
    _store(table).revoke_partitions(table._table, {TP(KNOWN_BYTES_TOPIC, 0)})


def _damage(folder: Path) -> None:
    for manifest in folder.rglob("MANIFEST-*"):
        manifest.write_bytes(b"damaged")


def _offset(table: KnownBytesTable) -> int | None:
    offset: int | None = _store(table).persisted_offset(TP(KNOWN_BYTES_TOPIC, 0))
    return offset


def _store(table: KnownBytesTable) -> Any:
    return table._table.data


def _key(incarnation: str, number: int) -> bytes:
    key = known_bytes_key(incarnation, "f", f"{number:064x}")
    assert key is not None
    return key


async def _fill(table: KnownBytesTable, **numbers: int) -> None:
    pairs: Mapping[bytes, bytes] = {
        _key(incarnation, number): b"%d" % number for incarnation, count in numbers.items() for number in range(count)
    }
    await table.put(pairs)


async def test_entries_come_through_the_changelog_and_stay(tmp_path: Path) -> None:
    table = _table(tmp_path)
    assert table.get(_key("a", 1)) is None
    await _fill(table, a=3)
    assert table.get(_key("a", 1)) == b"1"
    assert _offset(table) == 2
    _close(table)
    assert table.get(_key("a", 1)) is None
    again = _table(tmp_path)
    assert _offset(again) == 2
    assert again.get(_key("a", 1)) == b"1"
    _close(again)


async def test_a_sweep_removes_the_entries_of_collections_that_are_gone_and_no_others(table: KnownBytesTable) -> None:
    await _fill(table, a=3, ab=1200, b=2, c=700)
    assert await table.sweep({"a", "b"}) == 1900
    assert await table.sweep({"a", "b"}) == 0
    left = [table.get(_key(name, number)) for name, count in {"a": 3, "b": 2}.items() for number in range(count)]
    assert left == [b"0", b"1", b"2", b"0", b"1"]
    assert table.get(_key("ab", 7)) is None


async def test_a_damaged_store_is_begun_anew_and_read_from_the_start(tmp_path: Path) -> None:
    table = _table(tmp_path)
    await _fill(table, a=3)
    _close(table)
    _damage(tmp_path)
    with capture_logs() as lines:
        again = _table(tmp_path)
        # Without an offset, Faust reads the changelog from its beginning.
        assert _offset(again) is None
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == [
        "the known-bytes table is damaged and is read anew from its changelog"
    ]
    await _fill(again, a=1)
    assert again.get(_key("a", 0)) == b"0"
    _close(again)


async def test_a_store_that_another_process_holds_is_left_alone(tmp_path: Path) -> None:
    table = _table(tmp_path)
    await _fill(table, a=3)
    other = _table(tmp_path)
    with pytest.raises(Exception, match=r"(?i)lock"):
        _offset(other)
    assert table.get(_key("a", 1)) == b"1"
    _close(table)
    await asyncio.sleep(0)
