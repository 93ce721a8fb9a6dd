"""Makes a plan: the cheapest of some shapes whose simulated tail is short enough, with all that hangs on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from contract.errors import InvalidRequest
from serving.planning.constants import Constants, load_constants
from serving.planning.ledger import Figure, Ledger
from serving.planning.limits import Limit, limits_of
from serving.planning.model import api_query_s, fan_out_s
from serving.planning.quantities import show
from serving.planning.shape import Aim, Shape, costs_of, shape
from serving.planning.simulation import Load, Outcome, simulate
from serving.planning.sizing import sizes
from serving.planning.workload import Workload, assumed

QUERIES: Final = 4_000
"""Searches of one simulation."""

_BUSY: Final = (0.6, 0.45, 0.3)
_SMALLER: Final = (1.0, 0.5, 0.25)
_PERCENT = 99.0


class Plan(Struct, frozen=True):
    """What a workload needs. Figures stand in the order in which they were found."""

    workload: Workload
    figures: tuple[Figure, ...]
    limits: tuple[Limit, ...]

    def value(self, name: str) -> float:
        """A figure by its name; raises KeyError."""
        return next((one.value for one in self.figures if one.name == name), math.nan)


def plan(
    workload: Workload, overrides: Mapping[str, str] | None = None, *, seed: int = 0, constants: Constants | None = None
) -> Plan:
    """A plan whose p99 the simulation finds to be at most the wanted one. Deterministic for a seed.

    Tries fuller machines before emptier ones, and larger shards before smaller ones.

    Raises InvalidRequest where no such plan is found, with what to change.
    """
    workload.check()
    known = constants or load_constants()
    assumptions = assumed(overrides or {})
    best: tuple[float, Shape] | None = None
    refusal: InvalidRequest | None = None
    for smaller in _SMALLER:
        points, before = workload.points_per_shard * smaller, best
        for busy in _BUSY:
            aim, ledger = Aim(workload, points, busy), Ledger(known, assumptions)
            try:
                made = shape(aim, ledger)
            except InvalidRequest as error:
                # Smaller shards may fit where these do not.
                refusal = refusal or error
                continue
            p99_s = _simulated(made, aim, ledger, known, seed)
            if p99_s <= workload.p99_s:
                sizes(made, workload, ledger)
                return Plan(workload, tuple(ledger.figures), limits_of(made, workload, ledger, QUERIES))
            if best is None or p99_s < best[0]:
                best = p99_s, made
        # Still smaller shards are no way out where these were none, or where one of them holds everything.
        if (before is not None and best == before) or workload.images <= points / 2:
            break
    if best is None:
        raise refusal or InvalidRequest("no shape was tried")
    raise InvalidRequest(_advice(workload, *best))


def _simulated(made: Shape, aim: Aim, ledger: Ledger, known: Constants, seed: int) -> float:
    """The p99 of a search, through the router where there are cells."""
    with ledger.group("Latency"):
        costs = costs_of(made, aim, ledger, known.spread)
        outcome = simulate(made.cluster(), costs, Load(made.cell_qps, QUERIES), seed)
        return _latencies(made, outcome, costs.network_s, ledger)


def _latencies(made: Shape, outcome: Outcome, network_s: float, ledger: Ledger) -> float:
    run = f"simulation of {QUERIES} searches at {show(made.cell_qps, '1/s')}"
    ledger.add("p50 of a cell", outcome.percentile_s(50), "s", run)
    cell_s = ledger.add("p99 of a cell", outcome.percentile_s(_PERCENT), "s", run)
    ledger.add("queries per batch", outcome.queries_per_batch, "queries", run)
    ledger.add("shard cores busy", outcome.shard_busy, "share", run)
    ledger.add("API threads busy", outcome.api_busy, "share", run)
    ledger.add("answers without every shard", outcome.partial, "share", f"{run}; past the deadline of 200 ms")
    if outcome.refused:
        ledger.add("searches refused", outcome.refused, "share", f"{run}; past 64 under way in a process")
    # What was refused or is in part was not answered in time.
    if outcome.refused + outcome.partial > 1 - _PERCENT / 100:
        cell_s = math.inf
    margin = ledger.assumed("tail_margin")
    if made.cells == 1:
        return ledger.add("p99 with margin", cell_s * margin, "s", f"{margin:g} × the simulated one; this must hold")
    deeper = 100 * (_PERCENT / 100) ** (1 / made.cells_asked)
    router_s = api_query_s(ledger.measured) + fan_out_s(ledger.measured, made.cells_asked) + 2 * network_s
    slowest = outcome.percentile_s(deeper)
    whole = ledger.add(
        "p99",
        max(slowest, cell_s) + router_s,
        "s",
        f"p{deeper:.6g} of a cell, since the slowest of {made.cells_asked} counts, + {show(router_s, 's')} of router",
    )
    return ledger.add("p99 with margin", whole * margin, "s", f"{margin:g} × the simulated one; this must hold")


def _advice(workload: Workload, p99_s: float, made: Shape) -> str:
    found = f"its p99 is {show(p99_s, 's')} with the margin"
    if math.isinf(p99_s):
        found = "more than a hundredth of the searches are late or refused"
    ways = ["raise --p99", "lower --ef-search"]
    if made.cells_asked > 1:
        ways.append("ask fewer cells (--cells-asked)")
    if workload.cells is not None and made.shards > 64:
        ways.append("allow more cells (leave --cells out)")
    return (
        f"no plan holds p99 ≤ {show(workload.p99_s, 's')}. The best one has {made.cells} cells of {made.shards} shards "
        f"× {made.replicas} replicas, and {found}. To change that: {', '.join(ways)}, or assume faster cores "
        "(--assume core_speed=2)"
    )
