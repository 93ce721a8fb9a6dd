"""Renews what docs/capacity.md shows of `riverlens plan`: `python -m benchmarks.capacity.page`.

A block ```console whose first line is `$ riverlens plan …` holds what that command prints, and the part between
`<!-- validation -->` and `<!-- end -->` the comparison of the simulation with the small cluster.
"""

from __future__ import annotations

import re
import shlex
from typing import Final

from typer.testing import CliRunner

from benchmarks.capacity import validation
from benchmarks.running import ROOT
from contract.errors import RiverlensError
from serving.cli import app
from serving.planning.quantities import show
from serving.planning.workload import ASSUMPTIONS

PAGE: Final = ROOT / "docs" / "capacity.md"
_WIDTH = "132"
_BLOCK: Final = re.compile(r"```console\n\$ (riverlens plan [^\n]*)\n.*?```", re.S)


def printed(command: str) -> str:
    """What a command of `riverlens` prints, an error included."""
    result = CliRunner().invoke(app, shlex.split(command)[1:], env={"COLUMNS": _WIDTH, "NO_COLOR": "1"})
    match result.exception:
        case None:
            return "\n".join(line.rstrip() for line in result.output.splitlines())
        case RiverlensError() as error:
            return f"Error: {error.detail} [{error.code}]"
        case error:
            raise error


def _part(page: str, name: str, text: str) -> str:
    return re.sub(
        rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda found: f"{found[1]}{text}\n{found[2]}", page, flags=re.S
    )


def _assumptions() -> str:
    rows = [f"| `{name}` | {show(one.value, one.unit)} | {one.why} |" for name, one in ASSUMPTIONS.items()]
    return "\n".join(["| name | value | what |", "|---|---|---|", *rows])


def renewed(page: str) -> str:
    """The page with everything in it that is printed, printed anew."""
    page = _BLOCK.sub(lambda found: f"```console\n$ {found[1]}\n{printed(found[1])}\n```", page)
    page = _part(page, "validation", validation.table(validation.compared()))
    return _part(page, "assumptions", _assumptions())


def main() -> None:
    """Entry point."""
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
