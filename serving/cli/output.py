"""How the command line prints: tables, hits, and failures in one line that says what to do."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contract.errors import RiverlensError
from serving.client import ClientError, SearchAnswer, ServerUnreachable

console = Console()
errors = Console(stderr=True)


def report_failure(error: Exception) -> str | None:
    """Print an expected failure and return its text; None for an error that deserves a traceback."""
    match error:
        case ServerUnreachable():
            message = f"{error}. Start it with: riverlens up"
        case ClientError():
            again = " (the same call may succeed later)" if error.retryable else ""
            message = f"{error.detail} [{error.code}]{again}"
        case RiverlensError():
            message = f"{error.detail} [{error.code}]"
        case FileNotFoundError() | PermissionError() | IsADirectoryError():
            message = f"{error.strerror}: {error.filename}"
        case _:
            return None
    # A code in brackets would be taken for markup.
    errors.print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return message


def print_hits(title: str, answer: SearchAnswer) -> None:
    """A table of hits and one line on what the answer covers."""
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("caption")
    for rank, hit in enumerate(answer.hits, 1):
        payload = hit.payload or {}
        others = f" (+{hit.group.count - 1})" if hit.group is not None and hit.group.count > 1 else ""
        table.add_row(str(rank), f"{hit.score:.3f}", f"{hit.id}{others}", str(payload.get("caption", "")))
    console.print(table)
    if answer.hits and answer.no_confident_match:
        probability = answer.confidence.probability if answer.confidence else None
        chance = "" if probability is None else f": the best hit is right with a probability of {probability:.0%}"
        console.print(f"[bold yellow]No confident match[/]{chance}", highlight=False)
    coverage, took = answer.coverage, answer.took_ms
    lacking = "found by words only" if coverage.degraded == "metadata" else "partial answer"
    partial = f" [bold yellow]{lacking}[/]" if coverage.degraded else ""
    console.print(
        f"[dim]{coverage.shards_answered} of {coverage.shards_total} shards{partial} · "
        f"staleness {answer.freshness.staleness_s:.1f} s · {took.total:.0f} ms "
        f"(encode {took.encode:.0f}, fan-out {took.fan_out:.0f}) · {answer.model}[/]",
        highlight=False,
    )
