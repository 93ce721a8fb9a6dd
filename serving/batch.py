"""Many searches in one request: encoded together, asked of every shard together, answered each for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from fastapi.exceptions import RequestValidationError
from msgspec import Struct
from pydantic import Field

from actors.call_context import on_behalf_of
from contract.errors import InvalidRequest, RiverlensError
from contract.settings import Settings
from contract.telemetry import LogField
from serving.catalog import ServedCollection
from serving.meeting import Meeting
from serving.problems import ProblemError, invalid_request_body, problem_body
from serving.request_line import note, request_line
from serving.requests import validate
from serving.schemas import Body, SearchRequest
from serving.search import AnswerOut, Searcher, describe_search

_log = structlog.get_logger()

# Leaves room for a number behind the id of the whole request.
_REQUEST_ID_MAX = 56


class BatchRequest(Body):
    """Searches that are answered in their order."""

    searches: list[dict[str, Any]] = Field(min_length=1)


class BatchOut(Struct):
    """An answer or a problem per search, in their order."""

    answers: list[AnswerOut | dict[str, Any]]
    request_id: str


async def search_all(
    settings: Settings, searcher: Searcher, collection: ServedCollection, batch: BatchRequest, request_id: str
) -> BatchOut:
    """One answer or problem per search; what is wrong with one of them leaves the others alone.

    Raises InvalidRequest for more searches than are allowed; Overloaded (retryable) while too many are under way.
    """
    most = settings.search_batch_max
    if len(batch.searches) > most:
        raise InvalidRequest(
            f"{len(batch.searches)} searches; at most {most} (RIVERLENS_SEARCH_BATCH_MAX) go into one request"
        )
    meeting = Meeting(len(batch.searches))
    names = [f"{request_id[:_REQUEST_ID_MAX]}.{number}" for number in range(len(batch.searches))]
    with searcher.admission.admit(len(batch.searches)):
        outcomes = await asyncio.gather(
            *(
                _one(searcher, collection, fields, name, meeting)
                for fields, name in zip(batch.searches, names, strict=True)
            )
        )
    note(_summary([line for _, line in outcomes]))
    return BatchOut([answer for answer, _ in outcomes], request_id)


async def _one(
    searcher: Searcher, collection: ServedCollection, fields: dict[str, Any], name: str, meeting: Meeting
) -> tuple[AnswerOut | dict[str, Any], dict[str, object]]:
    """The answer or the problem of one search, and what its log line would say."""
    with request_line() as line, on_behalf_of(name), meeting.seat() as everybody:
        try:
            request = validate(SearchRequest, fields, strict=True)
            prepared = await searcher.prepare(collection, request, None, name)
            # Searches that wait for each other here share the calls to the shards.
            await everybody()
            answer = await searcher.answer(collection, prepared)
            describe_search(request, None, answer)
        except RequestValidationError as error:
            return invalid_request_body(error, name), line
        except ProblemError as error:
            return problem_body(error.error, name, error.members), line
        except RiverlensError as error:
            return problem_body(error, name), line
        # As of a single search: the trace stays in the log, and the caller gets an id to name it by.
        except Exception:  # noqa: BLE001
            _log.exception("search failed", **{LogField.REQUEST_ID: name})
            return problem_body(RiverlensError("the server failed; its log has the reason"), name), line
        return answer, line


def _summary(lines: Sequence[dict[str, object]]) -> dict[LogField, object]:
    """What the line of the whole request says: counts, and the worst of what each search covered."""
    answered = [line for line in lines if LogField.HITS in line]
    fields: dict[LogField, object] = {
        LogField.KIND: "batch",
        LogField.COUNT: len(lines),
        LogField.PROBLEMS: len(lines) - len(answered),
        LogField.CACHE_HITS: sum(line.get(LogField.CACHE_HIT) is True for line in lines),
    }
    if answered:
        fields[LogField.COVERAGE] = min((str(line[LogField.COVERAGE]) for line in answered), key=_answered_shards)
    return fields


def _answered_shards(coverage: str) -> int:
    return int(coverage.partition("/")[0])


def encode_batch(answer: BatchOut) -> bytes:
    """JSON bytes of the answers."""
    return msgspec.json.encode(answer)
