"""One run: a workload, faults one after the other, and what the checker makes of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import Struct

from tests.chaos.checker import check
from tests.chaos.faults import Fault, allowed_errors
from tests.chaos.history import FaultEvent, FinalLetter, History, Search, Write
from tests.chaos.target import Target
from tests.chaos.workload import Workload

_WHOLE_WITHIN_S = 300.0
_LOOK_EVERY_S = 0.5


class FaultResult(Struct):
    """What one application of a fault came to."""

    fault: str
    whole_after_s: float | None
    """From the kill, or from the end of what was held, until uploads are searchable and searches whole; None: never."""


class Verdict(Struct):
    """The end of a run; good if `problems` is empty."""

    results: list[FaultResult]
    problems: list[str]
    counts: dict[str, int]


def run_chaos(
    target: Target,
    selection: Iterable[Fault],
    history_file: Path,
    seed: int,
    *,
    calm_s: float = 3.0,
    writers: int = 3,
    readers: int = 2,
    say: Callable[[str], object] = print,
) -> Verdict:
    """Apply the faults in this order to a system that is ready and empty, under load, and check everything.

    The pauses between them are random by `seed`, `calm_s` seconds in the mean.
    """
    rng = random.Random(seed)
    history = History(history_file)
    workload = Workload(target.running.base_url, history, seed, writers=writers, readers=readers)
    log_begins = target.running.log.stat().st_size
    started = time.monotonic()
    applied: list[Fault] = []
    results: list[FaultResult] = []
    problems: list[str] = []
    pause = threading.Event()

    def trace(text: str) -> None:
        say(f"[{time.monotonic() - started:7.1f} s] {text}")

    workload.start()
    try:
        for number, fault in enumerate(selection):
            pause.wait(rng.uniform(0.5, 1.5) * calm_s)
            trace(f"{fault.name}: applied")
            since = time.monotonic()
            history.add(FaultEvent(fault=fault.name, phase="applied", at_s=since))
            applied.append(fault)
            fault.apply(target, rng)
            if fault.hold_s:
                pause.wait(fault.hold_s)
            fault.heal(target)
            if fault.hold_s:
                since = time.monotonic()
                trace(f"{fault.name}: healed")
                history.add(FaultEvent(fault=fault.name, phase="healed", at_s=since))
            whole = _whole(target, fault, workload, number * 1000)
            took_s = round(time.monotonic() - since, 1) if whole else None
            results.append(FaultResult(fault.name, took_s))
            if not whole:
                problems.append(f"after {fault.name} the system was not whole within {_WHOLE_WITHIN_S:.0f} s")
                trace(problems[-1])
                break
            history.add(FaultEvent(fault=fault.name, phase="whole", at_s=time.monotonic()))
            trace(f"{fault.name}: whole after {took_s} s")
        pause.wait(calm_s)
    finally:
        workload.stop()
    trace("looking at everything")
    if not problems:
        workload.look_at_everything()
        problems += check(history.events)
        explained = frozenset[str]().union(*(fault.rejects for fault in applied))
        problems += [
            f"{letter.image_id} at {letter.receipt} is a dead letter with {letter.code}, which no fault explains"
            for letter in history.events
            if isinstance(letter, FinalLetter) and letter.code not in explained
        ]
    problems += [f"logged at ERROR: {line[:1000]}" for line in target.errors(allowed_errors(applied), log_begins)]
    return Verdict(results, problems, _counts(history))


def _whole(target: Target, fault: Fault, workload: Workload, first: int) -> bool:
    deadline = time.monotonic() + _WHOLE_WITHIN_S
    pause = threading.Event()
    number = first
    while time.monotonic() < deadline and target.alive():
        if fault.is_over(target) and target.ready():
            number += 1
            if workload.canary(number):
                return True
        pause.wait(_LOOK_EVERY_S)
    return False


def _counts(history: History) -> dict[str, int]:
    writes = [event for event in history.events if isinstance(event, Write)]
    searches = [event for event in history.events if isinstance(event, Search)]
    return {
        "writes acknowledged": sum(write.outcome == "ok" for write in writes),
        "writes of unknown outcome": sum(write.outcome == "unknown" for write in writes),
        "writes refused": sum(write.outcome == "refused" for write in writes),
        "dead letters": sum(isinstance(event, FinalLetter) for event in history.events),
        "images": len({write.image_id for write in writes}),
        "searches whole": sum(search.status == 200 and search.degraded is False for search in searches),
        "searches declared partial": sum(search.status == 200 and search.degraded is not False for search in searches),
        "searches refused for now": sum(search.status not in {200, None} for search in searches),
        "searches cut off": sum(search.status is None for search in searches),
    }
