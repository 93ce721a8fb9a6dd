"""A bounded load generator over HTTP/1.1, closed loop or open loop.

`python -m benchmarks.load` reads a LoadPlan as JSON from standard input and prints a LoadReport as
JSON. It runs as a process of its own, so that it shares no interpreter with what it measures.

Closed loop: every connection sends its next request when it has its answer. Open loop (`rate`):
requests fall due on a fixed schedule, whether or not the ones before are answered, and a latency
counts from the moment a request was due. So a server that stalls is charged for everything that
would have come meanwhile, not for one request per connection.

Source: G. Tene, How NOT to Measure Latency (coordinated omission), 2013.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import Counter, deque
from typing import Final, cast

import msgspec
import numpy as np
import numpy.typing as npt
import uvloop
from msgspec import Struct

Floats = npt.NDArray[np.float64]

LOST: Final = 0
"""Status of a request whose connection ended before its answer."""

UNANSWERED: Final = -1
"""Status of a request without an answer at the end of the run."""

_OK = 200
_DRAIN_S = 5.0
_RECONNECT_S = 0.05
_HEAD_MAX = 64 * 1024
_CODE = re.compile(rb'"code":\s*"(\w+)"')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


class LoadRequest(Struct, frozen=True):
    """A request: GET, or POST of a JSON `body` where there is one."""

    path: str
    body: str = ""


class LoadPlan(Struct, frozen=True, kw_only=True):
    """`requests` are sent in order, with `repeat` from the start again after the last, for `seconds` at most.

    What begins in the first `warm_s` of them is left out of the report. `rate` is of requests per
    second in open loop, None for closed loop. An answer that does not hold the text `whole` counts as
    partial. `bound_ms` is the latency whose share the report tells. With `keep` the report holds the
    last answer to every request.
    """

    host: str
    port: int
    requests: tuple[LoadRequest, ...]
    connections: int
    seconds: float
    repeat: bool = True
    rate: float | None = None
    warm_s: float = 0.0
    whole: str = ""
    bound_ms: float = 100.0
    keep: bool = False


class LoadReport(Struct, frozen=True, kw_only=True):
    """Of the requests that began after the warm-up.

    `requests` were answered with 200, `partial` of them in part; `failed` had another answer, or lost
    their connection, or had no answer at the end; `failures` tells which, with the `code` of problems.
    `within_bound` is the share of all requests with a whole answer within the bound. Latencies are in
    milliseconds, of answers with 200, in open loop from the moment a request was due; one without an
    answer at the end counts as if it had come then. `waited_p99_ms` is how late requests were sent in
    open loop, which is part of their latency. Times of the first and last failed or partial answer
    (`disturbed_from_s`, `disturbed_until_s`) count from the start of the run. `cpu_share` is what the
    generator took of one processor.
    """

    requests: int
    failed: int
    partial: int
    seconds: float
    qps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    within_bound: float
    waited_p99_ms: float
    failures: dict[str, int]
    disturbed_from_s: float | None
    disturbed_until_s: float | None
    cpu_share: float
    answers: tuple[str | None, ...] = ()


class Sample(Struct, frozen=True):
    """One request: when it was due, was sent and was over, in seconds from the start of the run."""

    due_s: float
    sent_s: float
    over_s: float
    status: int
    whole: bool
    code: str = ""

    @property
    def failure(self) -> str:
        """What became of a request that was not answered with 200."""
        known = {LOST: "lost", UNANSWERED: "unanswered"}
        return known.get(self.status, f"{self.status} {self.code}".strip())


def due_times(rate: float, seconds: float) -> Floats:
    """When the requests of an open loop are due, in seconds from its start: evenly, the first at 0."""
    return np.arange(max(1, int(rate * seconds)), dtype=np.float64) / rate


def wire(host: str, port: int, request: LoadRequest) -> bytes:
    """The bytes of a request on a connection that stays open."""
    head = f"Host: {host}:{port}\r\nConnection: keep-alive\r\nAccept: application/json\r\n"
    if not request.body:
        return f"GET {request.path} HTTP/1.1\r\n{head}\r\n".encode()
    body = request.body.encode()
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"POST {request.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def report_of(samples: list[Sample], plan: LoadPlan, cpu_share: float = 0.0) -> LoadReport:
    """What a run came to; samples that were due in the warm-up are left out. Raises ValueError where none is left."""
    counted = [one for one in samples if one.due_s >= plan.warm_s]
    if not counted:
        raise ValueError(f"no request was sent within {plan.seconds:g} s")
    # Where every request failed, there are only the times of the failures to tell.
    timed = [one for one in counted if one.status in {_OK, UNANSWERED}] or counted
    milliseconds = 1e3 * np.array([one.over_s - one.due_s for one in timed])
    p50, p95, p99 = (float(value) for value in np.percentile(milliseconds, (50, 95, 99)))
    answered = [one for one in timed if one.status == _OK]
    good = sum(one.whole and 1e3 * (one.over_s - one.due_s) <= plan.bound_ms for one in answered)
    failures = Counter(one.failure for one in counted if one.status != _OK)
    disturbed = [one for one in counted if one.status != _OK or not one.whole]
    seconds = max(one.over_s for one in counted) - plan.warm_s
    return LoadReport(
        requests=len(answered),
        failed=len(counted) - len(answered),
        partial=sum(not one.whole for one in answered),
        seconds=seconds,
        qps=len(answered) / seconds if seconds else 0.0,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=float(milliseconds.max()),
        within_bound=good / len(counted),
        waited_p99_ms=float(np.percentile([1e3 * (one.sent_s - one.due_s) for one in counted], 99)),
        failures=dict(failures),
        disturbed_from_s=min((one.over_s for one in disturbed), default=None),
        disturbed_until_s=max((one.over_s for one in disturbed), default=None),
        cpu_share=cpu_share,
    )


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._needed = 0
        self._length = 0
        self._status = 0
        # Number of the request on its way, when it was due, when it was sent.
        self._pending: tuple[int, float, float] | None = None

    def send(self, number: int, due_s: float) -> None:
        assert self._transport is not None  # noqa: S101 - only a connected one is handed out
        self._pending = (number, due_s, self._load.now())
        self._transport.write(self._load.wires[number])

    def leave(self) -> None:
        """End what has no answer yet, and the connection."""
        if self._pending is not None:
            self._over(UNANSWERED, b"")
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._load.free(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._needed and not self._take_head():
            return
        if len(self._buffer) < self._needed:
            return
        body = bytes(self._buffer[self._needed - self._length : self._needed])
        self._buffer.clear()
        self._needed = 0
        if self._pending is not None:
            self._over(self._status, body)
            self._load.free(self)

    def _take_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _HEAD_MAX:
                self._load.fail(RuntimeError("the server sends a head without an end"))
            return False
        head = bytes(self._buffer[: end + 2])
        length = _LENGTH.search(head)
        if length is None:
            self._load.fail(RuntimeError(f"an answer without Content-Length: {head[:200]!r}"))
            return False
        self._status, self._length = int(head[9:12]), int(length[1])
        self._needed = end + 4 + self._length
        return True

    def _over(self, status: int, body: bytes) -> None:
        assert self._pending is not None  # noqa: S101
        number, due_s, sent_s = self._pending
        self._pending = None
        self._load.over(number, due_s, sent_s, status, body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pending is not None:
            self._over(LOST, b"")
        self._load.lost(self)


class _Load:
    """One run: hands requests to connections that are free, and keeps what became of them."""

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._whole = plan.whole.encode()
        self.wires = [wire(plan.host, plan.port, request) for request in plan.requests]
        self._samples: list[Sample] = []
        self._answers: list[str | None] = [None] * len(plan.requests)
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[float] = deque()
        self._next = 0
        self._outstanding = 0
        self._began = 0.0
        self._open = False
        self._over = asyncio.Event()
        self._failure: BaseException | None = None

    def now(self) -> float:
        """Seconds from the start of the run."""
        return time.perf_counter() - self._began

    async def run(self) -> LoadReport:
        cpu_s = time.process_time()
        for _ in range(self._plan.connections):
            await self._connect()
        self._began, self._open = time.perf_counter(), True
        if self._plan.rate is None:
            for connection in list(self._idle):
                self._idle.remove(connection)
                self.free(connection)
            await self._until(self._plan.seconds)
        else:
            await self._keep_schedule(self._plan.rate)
        self._open = False
        if self._outstanding or self._waiting:
            await self._until(self.now() + _DRAIN_S)
        over_s = self.now()
        for connection in list(self._connections):
            connection.leave()
        self._samples += [Sample(due_s, over_s, over_s, UNANSWERED, False) for due_s in self._waiting]
        for task in self._tasks:
            task.cancel()
        if self._failure is not None:
            raise self._failure
        report = report_of(self._samples, self._plan, (time.process_time() - cpu_s) / over_s)
        return msgspec.structs.replace(report, answers=tuple(self._answers)) if self._plan.keep else report

    async def _keep_schedule(self, rate: float) -> None:
        for due_s in due_times(rate, self._plan.seconds).tolist():
            if (ahead_s := due_s - self.now()) > 0:
                await asyncio.sleep(ahead_s)
            elif len(self._samples) % 64 == 0:
                # Behind schedule, answers must still be taken.
                await asyncio.sleep(0)
            if self._failure is not None:
                return
            self._waiting.append(due_s)
            if self._idle:
                self.free(self._idle.popleft())

    async def _until(self, end_s: float) -> None:
        """Wait until the run is over, at most until `end_s`."""
        try:
            async with asyncio.timeout(max(0.0, end_s - self.now())):
                await self._over.wait()
        except TimeoutError:
            pass

    async def _connect(self) -> None:
        _, connection = await self._loop.create_connection(lambda: _Connection(self), self._plan.host, self._plan.port)
        self._connections.add(connection)

    def free(self, connection: _Connection) -> None:
        """Give a connection its next request, if one is due."""
        if self._plan.rate is not None and self._waiting:
            self._send(connection, self._waiting.popleft())
        elif self._plan.rate is None and self._open and self.now() < self._plan.seconds and self._has_next():
            self._send(connection, self.now())
        else:
            self._idle.append(connection)
            if not self._outstanding and self._began and not (self._plan.rate is not None and self._open):
                self._over.set()

    def _has_next(self) -> bool:
        return self._plan.repeat or self._next < len(self.wires)

    def _send(self, connection: _Connection, due_s: float) -> None:
        number, self._next = self._next % len(self.wires), self._next + 1
        self._outstanding += 1
        connection.send(number, due_s)

    def over(self, number: int, due_s: float, sent_s: float, status: int, body: bytes) -> None:
        """A request has its answer, or has lost its connection."""
        self._outstanding -= 1
        whole = status == _OK and self._whole in body
        code = _CODE.search(body) if status != _OK else None
        self._samples.append(Sample(due_s, sent_s, self.now(), status, whole, code[1].decode() if code else ""))
        if self._plan.keep and status == _OK:
            self._answers[number] = body.decode()

    def lost(self, connection: _Connection) -> None:
        """A connection has ended; another takes its place while the run goes on."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._open:
            task = self._loop.create_task(self._reconnect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif not self._outstanding:
            self._over.set()

    async def _reconnect(self) -> None:
        while self._open:
            await asyncio.sleep(_RECONNECT_S)
            try:
                await self._connect()
            except OSError as error:
                # The server may be starting again; what falls due meanwhile waits, and is charged for it.
                print(f"no connection: {error}", file=sys.stderr)
            else:
                return

    def fail(self, failure: BaseException) -> None:
        """End the run with this error."""
        self._failure = failure
        self._over.set()


async def run(plan: LoadPlan) -> LoadReport:
    """Send the load and report it.

    Raises:
        OSError: nobody listens there at the start.
        RuntimeError: the server speaks a form of HTTP that the generator does not know.
    """
    return await _Load(plan).run()


if __name__ == "__main__":
    report = uvloop.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=LoadPlan)))
    sys.stdout.buffer.write(msgspec.json.encode(report))
