"""`make chaos`: a long randomized run. Prints its trace and the checker's verdict; exit status 1 if anything broke."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.disasters import DiskFull, disasters, mount_shards, unmount_shards
from tests.chaos.faults import Fault, faults
from tests.chaos.objects import object_faults, object_store
from tests.chaos.run import Verdict, run_chaos
from tests.chaos.target import Target
from tests.integration.system import RunningSystem

_SHOWN = 40


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos CHAOS_ARGS=…", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="begin no new fault after this long")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--faults", default="", help="names, separated by commas; each in turn instead of at random")
    parser.add_argument("--times", type=int, default=1, help="with --faults: how often the whole list")
    parser.add_argument(
        "--calm", type=float, default=3.0, help="seconds of undisturbed load between faults, in the mean"
    )
    parser.add_argument("--broker", choices=("kafka", "memory"), default="kafka")
    parser.add_argument("--list", action="store_true", help="print the names of the faults")
    return parser.parse_args()


def _selection(arguments: argparse.Namespace, known: dict[str, Fault]) -> Iterator[Fault]:
    """The named faults in turn; else all that can be, in random rounds, until the time is over."""
    if arguments.faults:
        yield from [known[name] for name in arguments.faults.split(",")] * arguments.times
        return
    possible = [fault for fault in known.values() if arguments.broker == "kafka" or not fault.needs_kafka]
    rng = random.Random(arguments.seed)
    ends = time.monotonic() + arguments.seconds
    while True:
        for fault in rng.sample(possible, len(possible)):
            if time.monotonic() > ends:
                return
            yield fault


def _print(verdict: Verdict) -> None:
    print("\nfault                  times   whole again after (s): median, worst")
    names = dict.fromkeys(result.fault for result in verdict.results)
    for name in names:
        took = sorted(r.whole_after_s for r in verdict.results if r.fault == name and r.whole_after_s is not None)
        told = f"{took[len(took) // 2]:8.1f} {took[-1]:8.1f}" if took else "never"
        print(f"{name:22} {sum(r.fault == name for r in verdict.results):5}   {told}")
    print()
    for what, count in verdict.counts.items():
        print(f"{count:6} {what}")
    print()
    for problem in verdict.problems[:_SHOWN]:
        print(f"BROKEN: {problem}")
    print("verdict:", "every promise was kept" if not verdict.problems else f"{len(verdict.problems)} problems")


def main() -> int:
    """Run; the exit status."""
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="rlchaos-"))
    with object_store() as (proxy, object_settings):
        known = faults() | disasters() | object_faults(proxy)
        if arguments.list:
            print("\n".join(known))
            return 0
        print(f"seed {arguments.seed}, broker {arguments.broker}, folder {folder}")
        settings = {"RIVERLENS_LOG_FORMAT": "json", "RIVERLENS_RESTARTS_MAX": "20", **object_settings}
        running = RunningSystem(folder / "home", arguments.broker, settings)
        mounted = mount_shards(running.home)
        if not mounted:
            print("the stores cannot be put on a file system of their own here: no disk-full")
            del known[DiskFull.name]
        try:
            running.start()
            verdict = run_chaos(
                Target(running),
                _selection(arguments, known),
                folder / "history.jsonl",
                arguments.seed,
                calm_s=arguments.calm,
            )
        finally:
            running.end()
            if mounted:
                unmount_shards(running.home)
    _print(verdict)
    print(f"history {folder / 'history.jsonl'}, log {running.log}")
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main())
