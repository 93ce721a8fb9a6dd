"""Discrete-event simulation of searches that wait for the slowest of their shards.

What it follows of the server: queries gather into batches (`serving.gathering`: how long, how many,
how many under way), one replica per shard is chosen by power of two choices, a second one is asked after
the p95 of recent calls within a budget (`serving.replica_choice`, these very rules), calls end at the
deadline, an API process has one thread, and searches of a replica wait for each other where they are in Python.

What it simplifies: processors take work in its order of arrival and are not shared out in slices; an API
encodes all calls of a batch before the first leaves; a call's time is known to its hedging rule when it begins.

Everything is in seconds. Equal arguments give equal outcomes.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import numpy as np

from serving.gathering import BATCH_MAX, GATHER_MAX_S, WINDOW_S
from serving.replica_choice import HedgeBudget, RecentLatencies, choose, hedge_after_s

SHARDS_SIMULATED_MAX: Final = 32
"""More shards than this are not simulated one by one: the rest is drawn from what these took before."""

_SPREAD_STEPS = 1024
_WARM_SHARE = 0.1
# Below so many queries in a call each of them is drawn; above, their sum is close to normal.
_DRAWN_MAX = 8

Work = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Costs:
    """Processor seconds of a search.

    At the API: `query` before and after the fan-out together, `batch`, `call` per shard, `row` per query and
    shard. At a shard: `shard_call` and `shard_query`, of which `serial_call` and `serial_query` are in Python,
    where calls to the same replica wait for each other. `network` is one way. `spread` are quantiles of a
    query's time at a shard over its mean, by share.
    """

    query_s: float
    batch_s: float
    call_s: float
    row_s: float
    shard_call_s: float
    shard_query_s: float
    serial_call_s: float = 0.0
    serial_query_s: float = 0.0
    network_s: float = 0.0
    spread: Sequence[tuple[float, float]] = ((0.0, 1.0), (1.0, 1.0))


@dataclass(frozen=True, slots=True)
class Cluster:
    """`nodes` machines with `cores` each hold the replicas of all shards; API processes have a core each of their own.

    On each node `background` cores are busy with other things, in bursts. `shared`: there is one machine, and API
    and clients share its cores with the shards. `client_s` is what a search costs its client there.
    An API process has at most `batches_in_flight` under way, and refuses searches past `in_flight_max`.
    """

    shards: int
    replicas: int
    nodes: int
    cores: int
    api_processes: int
    shared: bool = False
    background: float = 0.0
    background_burst_s: float = 0.002
    client_s: float = 0.0
    deadline_s: float = 0.2
    in_flight_max: int = 64
    batches_in_flight: int = 2


@dataclass(frozen=True, slots=True)
class Load:
    """`queries` at `qps`: independent of each other (`poisson`), or evenly as the load generator sends them."""

    qps: float
    queries: int
    poisson: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """Latencies of what was answered after the warm-up, sorted, and what else came of it.

    Shares: `partial` of answers without every shard, `refused` of queries; `busy` of the time of shard cores and
    of API threads.
    """

    latencies_s: tuple[float, ...]
    queries_per_batch: float
    partial: float
    refused: float
    shard_busy: float
    api_busy: float
    hedges_per_call: float

    def percentile_s(self, percent: float) -> float:
        """By linear interpolation; infinity where nothing was answered."""
        return float(np.percentile(self.latencies_s, percent)) if self.latencies_s else float("inf")


class _Processors:
    """Cores that take work in its order of arrival."""

    def __init__(self, cores: int) -> None:
        self._free_at = [0.0] * cores
        self.worked_s = 0.0

    def run(self, now: float, seconds: float) -> float:
        """When work that comes now is over."""
        ends = max(now, self._free_at[0]) + seconds
        heapq.heapreplace(self._free_at, ends)
        self.worked_s += seconds
        return ends


@dataclass(slots=True)
class _Batch:
    api: _Api
    asked_at: list[float]
    left_at: float = 0.0
    done: list[float] = field(default_factory=list)
    version: int = 0
    rest_drawn: bool = False


class _Api:
    """One process: a thread, what waits for it, and what it knows of its calls."""

    def __init__(self, simulation: Simulation, cores: _Processors, shards: int, replicas: int) -> None:
        self._simulation = simulation
        self._cores = cores
        self._queue: deque[tuple[float, Work]] = deque()
        self._working = False
        self.worked_s = 0.0
        self.waiting: list[float] = []
        self.under_way = 0
        self.in_flight = 0
        self.timer = 0
        self.timer_set = False
        self.latencies = [RecentLatencies() for _ in range(shards)]
        self.budgets = [HedgeBudget() for _ in range(shards)]
        self.ends: list[list[list[float]]] = [[[] for _ in range(replicas)] for _ in range(shards)]

    def work(self, seconds: float, then: Work) -> None:
        """One piece of work after the others of this thread."""
        self._queue.append((seconds, then))
        if not self._working:
            self._next()

    def _next(self) -> None:
        self._working = True
        seconds, then = self._queue.popleft()
        self.worked_s += seconds
        self._simulation.at(self._cores.run(self._simulation.now, seconds), lambda: self._over(then))

    def _over(self, then: Work) -> None:
        self._working = False
        then()
        if self._queue and not self._working:
            self._next()


class Simulation:
    """One run. `run` may be called once."""

    def __init__(self, cluster: Cluster, costs: Costs, load: Load, seed: int) -> None:
        self.now = 0.0
        self._cluster, self._costs, self._load = cluster, costs, load
        self._random = Random(seed)  # noqa: S311 - chance of a simulation, guards nothing
        self._events: list[tuple[float, int, Work]] = []
        self._number = itertools.count()
        self._shards = min(cluster.shards, SHARDS_SIMULATED_MAX)
        # The machines that hold the simulated shards, as full as all machines are.
        per_node = cluster.shards * cluster.replicas / cluster.nodes
        self._nodes = (
            max(cluster.replicas, round(self._shards * cluster.replicas / per_node)) if not cluster.shared else 1
        )
        self._processors = [_Processors(cluster.cores) for _ in range(self._nodes)]
        self._interpreters = [[_Processors(1) for _ in range(cluster.replicas)] for _ in range(self._shards)]
        self._apis = [
            _Api(self, self._processors[0] if cluster.shared else _Processors(1), self._shards, cluster.replicas)
            for _ in range(cluster.api_processes)
        ]
        shares, values = zip(*costs.spread, strict=True)
        steps = (np.arange(_SPREAD_STEPS) + 0.5) / _SPREAD_STEPS
        drawn = np.interp(steps, shares, values)
        # Between quantiles the mean is not kept by itself.
        self._factors: list[float] = (drawn / drawn.mean()).tolist()
        self._deviation = float(np.std(self._factors))
        self._fan_outs: list[float] = []
        self._answered: list[tuple[float, float]] = []
        self._batches = self._gathered = self._partial = self._refused = self._calls = self._hedges = 0

    def at(self, moment: float, work: Work) -> None:
        """Do something at a moment that is not past."""
        heapq.heappush(self._events, (moment, next(self._number), work))

    def run(self) -> Outcome:
        """Let all queries come and be answered."""
        for moment in self._arrivals():
            self.at(moment, self._arrive)
        last = self._load.queries / self._load.qps
        if self._cluster.background:
            for processors in self._processors:
                self._schedule_background(processors, last)
        while self._events:
            self.now, _, work = heapq.heappop(self._events)
            work()
        warm = _WARM_SHARE * last
        answered = sorted(took for arrived, took in self._answered if arrived >= warm)
        elapsed = max(self.now, last)
        return Outcome(
            tuple(answered),
            self._gathered / max(1, self._batches),
            self._partial / max(1, len(self._answered)),
            self._refused / self._load.queries,
            sum(one.worked_s for one in self._processors) / (elapsed * self._cluster.cores * self._nodes),
            sum(one.worked_s for one in self._apis) / (elapsed * len(self._apis)),
            self._hedges / max(1, self._calls),
        )

    def _arrivals(self) -> list[float]:
        gap = 1 / self._load.qps
        if not self._load.poisson:
            return [number * gap for number in range(self._load.queries)]
        gaps = (self._random.expovariate(1 / gap) for _ in range(self._load.queries))
        return list(itertools.accumulate(gaps))

    def _schedule_background(self, processors: _Processors, until: float) -> None:
        """Bursts of exponential length at independent moments."""
        burst = self._cluster.background_burst_s
        following = self.now + self._random.expovariate(self._cluster.background / burst)

        def work() -> None:
            processors.run(self.now, self._random.expovariate(1 / burst))
            self._schedule_background(processors, until)

        if following < until:
            self.at(following, work)

    def _arrive(self) -> None:
        arrived = self.now
        if self._cluster.shared and self._cluster.client_s:
            self._processors[0].run(self.now, self._cluster.client_s)
        api = self._apis[0] if len(self._apis) == 1 else self._random.choice(self._apis)
        if api.in_flight >= self._cluster.in_flight_max:
            self._refused += 1
            return
        api.in_flight += 1
        api.work(self._costs.query_s / 2, lambda: self._gather(api, arrived))

    def _gather(self, api: _Api, arrived: float) -> None:
        api.waiting.append(arrived)
        if len(api.waiting) >= BATCH_MAX or not api.under_way:
            self._leave(api)
        elif not api.timer_set:
            api.timer_set = True
            wait_s = WINDOW_S if api.under_way < self._cluster.batches_in_flight else max(WINDOW_S, GATHER_MAX_S)
            timer = api.timer
            self.at(self.now + wait_s, lambda: self._leave(api) if api.timer == timer else None)

    def _leave(self, api: _Api) -> None:
        api.timer += 1
        api.timer_set = False
        batch = _Batch(api, api.waiting)
        api.waiting = []
        if not batch.asked_at:
            return
        api.under_way += 1
        self._batches += 1
        self._gathered += len(batch.asked_at)
        api.work(self._costs.batch_s + self._half_of_calls_s(batch), lambda: self._dispatch(batch))

    def _half_of_calls_s(self, batch: _Batch) -> float:
        costs = self._costs
        return self._cluster.shards * (costs.call_s + costs.row_s * len(batch.asked_at)) / 2

    def _dispatch(self, batch: _Batch) -> None:
        batch.left_at = self.now
        hedged = self._cluster.replicas > 1
        for shard in range(self._shards):
            replicas = list(range(self._cluster.replicas))
            end = self._call(batch, shard, replicas)
            batch.done.append(end)
            if hedged:
                batch.api.budgets[shard].earn()
                hedge_at = self.now + hedge_after_s(batch.api.latencies[shard].p95_s(), self._cluster.deadline_s)
                if end > hedge_at:
                    self.at(hedge_at, lambda shard=shard, left=replicas: self._hedge(batch, shard, left))  # type: ignore[misc]
        self._expect(batch)

    def _call(self, batch: _Batch, shard: int, left: list[int]) -> float:
        """Ask one of the replicas that are left; when its answer is there."""
        api = batch.api
        ends = api.ends[shard]
        replica = 0
        if len(ends) > 1:
            for of_replica in ends:
                of_replica[:] = [one for one in of_replica if one > self.now]
            replica = choose([len(one) for one in ends], left, self._random)
        left.remove(replica)
        node = (shard + replica * (self._nodes // len(ends))) % self._nodes
        costs, queries = self._costs, len(batch.asked_at)
        arrives, service_s = self.now + costs.network_s, self._service_s(queries)
        serial_s = costs.serial_call_s + costs.serial_query_s * queries
        in_turn = self._interpreters[shard][replica].run(arrives, serial_s) + max(0.0, service_s - serial_s)
        end = max(in_turn, self._processors[node].run(arrives, service_s)) + costs.network_s
        if len(ends) > 1:
            ends[replica].append(end)
            api.latencies[shard].add(end - self.now)
        self._calls += 1
        return end

    def _service_s(self, queries: int) -> float:
        costs, random = self._costs, self._random.random
        if queries <= _DRAWN_MAX:
            total = sum(self._factors[int(random() * _SPREAD_STEPS)] for _ in range(queries))
        else:
            total = max(0.0, self._random.gauss(queries, self._deviation * queries**0.5))
        return costs.shard_call_s + costs.shard_query_s * total

    def _hedge(self, batch: _Batch, shard: int, left: list[int]) -> None:
        if not batch.api.budgets[shard].take():
            return
        self._hedges += 1
        end = self._call(batch, shard, left)
        if end < batch.done[shard]:
            batch.done[shard] = end
            self._expect(batch)

    def _expect(self, batch: _Batch) -> None:
        batch.version += 1
        version = batch.version
        over = min(max(batch.done), batch.left_at + self._cluster.deadline_s)
        self.at(over, lambda: self._settle(batch) if batch.version == version else None)

    def _settle(self, batch: _Batch) -> None:
        """The last of the simulated shards has answered, or the deadline is there."""
        if not batch.rest_drawn:
            batch.rest_drawn = True
            took = max(batch.done) - batch.left_at
            self._fan_outs.append(took)
            rest = self._cluster.shards / self._shards - 1
            slowest = max((self._random.choice(self._fan_outs) for _ in range(round(rest))), default=0.0)
            if slowest > took:
                batch.done.append(batch.left_at + slowest)
                self._expect(batch)
                return
        if max(batch.done) > batch.left_at + self._cluster.deadline_s:
            self._partial += len(batch.asked_at)
        batch.api.work(self._half_of_calls_s(batch), lambda: self._answer(batch))

    def _answer(self, batch: _Batch) -> None:
        api = batch.api
        api.under_way -= 1
        for arrived in batch.asked_at:
            api.work(self._costs.query_s / 2, lambda arrived=arrived: self._finish(api, arrived))  # type: ignore[misc]
        if api.waiting:
            self._leave(api)

    def _finish(self, api: _Api, arrived: float) -> None:
        api.in_flight -= 1
        self._answered.append((arrived, self.now - arrived))


def simulate(cluster: Cluster, costs: Costs, load: Load, seed: int = 0) -> Outcome:
    """Run `load` against `cluster`. Deterministic for a seed."""
    return Simulation(cluster, costs, load, seed).run()
