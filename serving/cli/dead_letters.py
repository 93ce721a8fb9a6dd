"""`riverlens dead-letter …`: events that led to nothing, and what to do with them."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from rich.table import Table

from contract.errors import InvalidRequest
from serving.cli.output import console
from serving.client import Client, DeadLetter, SettledLetters
from serving.client.options import LetterMatch

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_age(text: str | None, now: Callable[[], float] = time.time) -> int | None:
    """Unix milliseconds so long ago: `90s`, `30m`, `2h`, `7d`; raises InvalidRequest."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is None:
        raise InvalidRequest(f"{text!r} is no age; it is a number and s, m, h or d, as in 2h")
    return max(0, int((now() - int(match[1]) * _UNITS_S[match[2]]) * 1000))


def print_letters(
    client: Client,
    collection: str,
    state: Literal["waiting", "redriven", "dropped", "any"],
    match: LetterMatch,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """Print the newest `limit` letters that match."""
    letters: list[DeadLetter] = []
    raw: list[object] = []
    cursor, unread = None, 0
    while len(letters) < limit:
        page = client.dead_letters(collection, state=state, limit=limit - len(letters), cursor=cursor, **match)
        letters += page.dead_letters
        raw += page.raw["dead_letters"]
        cursor, unread = page.next_cursor, page.unread
        if cursor is None:
            break
    if as_json:
        console.print_json(json.dumps(raw))
        return
    table = Table("id", "image", "stage", "code", "retryable", "attempts", "failed", "reason", show_edge=False)
    for letter in letters:
        table.add_row(
            letter.id,
            letter.image_id or "",
            letter.stage,
            letter.code,
            "yes" if letter.retryable else "no",
            str(letter.attempts),
            _time(letter.failed_at_ms),
            letter.reason if letter.state == "waiting" else f"[{letter.state}] {letter.reason}",
        )
    console.print(table, markup=False)
    more = "; there are more" if cursor is not None else ""
    behind = f"; {unread} records of the topic are not read yet" if unread else ""
    console.print(f"{len(letters)} dead letters{more}{behind}", highlight=False)


def print_letter(client: Client, collection: str, letter_id: str) -> None:
    """Print one letter with its event, as JSON."""
    console.print_json(json.dumps(client.dead_letter(collection, letter_id).raw))


def settle(
    client: Client,
    collection: str,
    how: Literal["redrive", "drop"],
    ids: list[str],
    match: LetterMatch,
    *,
    every: bool,
) -> int:
    """Redrive or drop letters and say what became of them; the exit status, 1 when one was refused.

    Raises InvalidRequest when nothing, or both ids and a match, are given.
    """
    wanted = {name: value for name, value in match.items() if value is not None}
    if ids and (wanted or every):
        raise InvalidRequest("give ids, or options that say which letters, not both")
    if not ids and not wanted and not every:
        raise InvalidRequest(f"nothing to {how}: give ids, options that say which letters, or --all")
    counts: Counter[str] = Counter()
    call = client.redrive if how == "redrive" else client.drop_dead_letters
    if ids:
        # Of one request's size each.
        for start in range(0, len(ids), 500):
            _tell(call(collection, ids[start : start + 500]), counts)
    else:
        cursor: str | None = None
        while True:
            answer = call(collection, cursor=cursor, **match)
            _tell(answer, counts)
            cursor = answer.next_cursor
            if cursor is None:
                break
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()) or "no letter matches")
    return 1 if counts["refused"] else 0


def _tell(answer: SettledLetters, counts: Counter[str]) -> None:
    for one in answer.dead_letters:
        counts[one.status] += 1
        if one.problem is not None:
            console.print(f"{one.id}: {one.problem.detail} ({one.problem.code})", highlight=False, markup=False)
        elif one.receipt is not None:
            receipt = f"{one.receipt.partition}-{one.receipt.offset}"
            console.print(f"{one.id}: sent again as {receipt}", highlight=False, markup=False)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
