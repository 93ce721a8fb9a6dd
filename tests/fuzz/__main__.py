"""`make fuzz`: mutated pictures for a while; exit status 1 if a process died, hung or grew."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.fuzz.decoding import RSS_MAX_BYTES, fuzz, keep


def main() -> int:
    """Run, report."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    report = asyncio.run(fuzz(given.seed, seconds=given.seconds))
    print(f"seed {report.seed}: {report.pictures} pictures, {dict(report.outcomes)}")
    print(f"largest process at the end: {report.rss_bytes / 1e6:.0f} MB, at most {RSS_MAX_BYTES / 1e6:.0f} are allowed")
    if report.culprits:
        folder = Path(tempfile.mkdtemp(prefix="riverlens-fuzz-"))
        print(f"a process died or hung; one of these did it: {', '.join(map(str, keep(report.culprits, folder)))}")
    return int(bool(report.culprits) or report.rss_bytes > RSS_MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main())
