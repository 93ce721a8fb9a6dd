"""Bodies of the dead-letter routes."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, Field, model_validator

from contract.errors import EventInvalid, InvalidRequest
from contract.events import DeadLetter, decode_event
from serving.dead_letter_index import LetterFilter, LetterRow
from serving.dead_letters import SETTLE_MAX, Batch, Settled
from serving.problems import problem_body
from serving.schemas import Body, Problem, ReceiptBody

_PLACE_MAX = 2**62


class LetterBody(BaseModel):
    """One dead letter."""

    id: str = Field(description="PARTITION-OFFSET of the event that failed.", examples=["2-1041"])
    image_id: str | None = Field(description="Null for an event that names none that can be believed.")
    stage: str = Field(description="Where it failed: `read`, `fetch`, `decode`, `embed`, `publish` or `redrive`.")
    code: str = Field(examples=["object_store_unavailable"])
    reason: str
    retryable: bool = Field(description="Whether the same event may succeed later without a change.")
    attempts: int = Field(description="Tries, those before earlier redrives among them.")
    redrives: int
    failed_at_ms: int = Field(description="Unix milliseconds.")
    state: Literal["waiting", "redriven", "dropped"]
    settled_at_ms: int | None = Field(description="When it was redriven or dropped.")
    receipt: ReceiptBody | None = Field(description="Of the event that was sent again.")


class LetterPlace(BaseModel):
    """Where an event stood."""

    topic: str
    partition: int
    offset: int


class LetterAnswer(LetterBody):
    """One dead letter with its event."""

    source: LetterPlace
    event: dict[str, Any] | None = Field(description="The event, if it can be decoded.")
    event_base64: str | None = Field(description="Its exact bytes; null where they were too large for a letter.")


class LetterList(BaseModel):
    """One page of dead letters, newest first."""

    dead_letters: list[LetterBody]
    next_cursor: str | None = Field(description="For the next page; null at the end, and only there.")
    unread: int = Field(description="Records of the topic that are not read yet, and not in the list.")


class LetterMatch(Body):
    """Which letters; what is left out is any."""

    code: str | None = Field(None, min_length=1, max_length=100, examples=["object_store_unavailable"])
    stage: str | None = Field(None, min_length=1, max_length=100, examples=["fetch"])
    retryable: bool | None = None
    image_id: str | None = Field(None, min_length=1, max_length=255)
    since_ms: int | None = Field(None, ge=0, le=_PLACE_MAX, description="Unix milliseconds.")
    until_ms: int | None = Field(None, ge=0, le=_PLACE_MAX, description="Unix milliseconds, not included.")

    def filter(self, state: Literal["waiting", "redriven", "dropped"] | None) -> LetterFilter:
        """What the index is asked for."""
        return LetterFilter(state, self.code, self.stage, self.retryable, self.image_id, self.since_ms, self.until_ms)


class SettleRequest(Body):
    """Letters by their ids, or all that match and wait."""

    ids: list[Annotated[str, Field(max_length=40)]] | None = Field(
        None, min_length=1, max_length=SETTLE_MAX, examples=[["2-1041"]]
    )
    match: LetterMatch | None = Field(None, description="`{}` for all that wait.")
    cursor: str | None = Field(None, max_length=100, description="`next_cursor` of the answer before; with `match`.")

    @model_validator(mode="after")
    def _is_one_thing(self) -> SettleRequest:
        if (self.ids is None) == (self.match is None):
            raise ValueError("either `ids` or `match`")
        if self.cursor is not None and self.match is None:
            raise ValueError("`cursor` goes with `match`")
        return self


class SettledBody(BaseModel):
    """What became of one letter."""

    id: str
    status: Literal["redriven", "dropped", "refused"]
    receipt: ReceiptBody | None = Field(None, description="Of the event that was sent again.")
    problem: Problem | None = Field(None, description="Why it was refused.")


class SettleAnswer(BaseModel):
    """What became of each letter."""

    dead_letters: list[SettledBody]
    next_cursor: str | None = Field(description="Send it with the same `match` for the rest; null when all were seen.")


def letter_body(row: LetterRow) -> LetterBody:
    """A row as a body."""
    return LetterBody(**_fields(row))


def letter_answer(row: LetterRow, letter: DeadLetter) -> LetterAnswer:
    """A row with its letter."""
    try:
        event = msgspec.to_builtins(decode_event(letter.event))
    except EventInvalid:
        event = None
    return LetterAnswer(
        **_fields(row),
        source=LetterPlace(topic=letter.source_topic, partition=letter.source_partition, offset=letter.source_offset),
        event=event,
        event_base64=None if letter.event_left_out else base64.b64encode(letter.event).decode(),
    )


def settled_body(one: Settled, how: Literal["redriven", "dropped"], request_id: str) -> SettledBody:
    """What became of one letter."""
    if one.error is not None:
        problem = Problem(**problem_body(one.error, request_id))
        return SettledBody(id=one.id, status="refused", problem=problem)
    receipt = None if one.receipt is None else ReceiptBody(partition=one.receipt.partition, offset=one.receipt.offset)
    return SettledBody(id=one.id, status="redriven" if receipt else how, receipt=receipt)


def settle_answer(batch: Batch, how: Literal["redriven", "dropped"], request_id: str) -> SettleAnswer:
    """What became of each letter, and where to go on."""
    following = None if batch.following is None else f"{batch.following[0]}-{batch.following[1]}"
    return SettleAnswer(
        dead_letters=[settled_body(one, how, request_id) for one in batch.settled], next_cursor=following
    )


def parse_places(cursor: str, count: int) -> tuple[int, ...]:
    """The numbers of a cursor; raises InvalidRequest."""
    parts = cursor.split("-")
    if len(parts) != count or not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in parts):
        raise InvalidRequest("the cursor is none of this list")
    return tuple(map(int, parts))


def _fields(row: LetterRow) -> dict[str, Any]:
    receipt = row.receipt
    return {
        "id": f"{row.partition}-{row.source_offset}",
        "image_id": row.image_id,
        "stage": row.stage,
        "code": row.code,
        "reason": row.reason,
        "retryable": row.retryable,
        "attempts": row.attempts,
        "redrives": row.redrives,
        "failed_at_ms": row.failed_at_ms,
        "state": row.state,
        "settled_at_ms": row.settled_at_ms,
        "receipt": None if receipt is None else ReceiptBody(partition=receipt.partition, offset=receipt.offset),
    }
