"""What the capacity planner needs and no other benchmark measures: `python -m benchmarks.capacity`.

Each part writes a result file of its own: capacity-records, capacity-service, capacity-caller,
capacity-pictures, capacity-cluster. `python -m benchmarks.capacity.constants` takes from them what
`riverlens plan` counts with; `make bench-capacity` runs both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from benchmarks.capacity import caller, cluster, pictures, records, service
from benchmarks.result_file import Result, write

SEED: Final = 20
Measure = Callable[[int], tuple[list[Result], str]]
PARTS: Final[dict[str, Measure]] = {
    "records": records.measure,
    "service": service.measure,
    "caller": caller.measure,
    "pictures": pictures.measure,
    "cluster": cluster.measure,
}
"""By name: figures and the sha256 of the data, for a seed."""


def main() -> int:
    """Entry of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), default=tuple(PARTS), metavar="PART,…")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for name in arguments.only:
        print(f"== {name}", flush=True)
        started_at = datetime.now(UTC)
        results, sha256 = PARTS[name](arguments.seed)
        for one in results:
            print(f"{one.name:48} {one.value:14.4f} {one.unit}", flush=True)
        print(write(f"capacity-{name}", results, arguments.seed, sha256, started_at), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
