"""`riverlens plan`: what a deployment of a given size needs, as a table, as JSON, or with every derivation."""

from __future__ import annotations

from typing import Annotated, cast

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from contract.errors import InvalidRequest
from contract.events import Quantization, VectorType
from serving.cli.output import console
from serving.planning.choosing import Plan, plan
from serving.planning.quantities import parse_count, parse_seconds
from serving.planning.workload import Workload


def command(
    images: Annotated[str, typer.Option(help="Images in the collection: 250k, 100M, 1B.")],
    qps: Annotated[str, typer.Option(help="Searches a second.")],
    p99: Annotated[str, typer.Option(help="The latency that 99 of 100 searches stay within: 100ms.")] = "100ms",
    dim: Annotated[int, typer.Option(help="Dimension of the vectors.")] = 512,
    quantization: Annotated[str, typer.Option(help="none, fp16, sq8, pq or rabitq.")] = "sq8",
    vector_type: Annotated[str, typer.Option(help="fp16 or fp32: how the store keeps vectors.")] = "fp16",
    ef_search: Annotated[int, typer.Option(help="How widely a shard searches; decides the recall.")] = 64,
    uploads: Annotated[str | None, typer.Option(help="New images a second; default: a share of all, per day.")] = None,
    replicas: Annotated[int, typer.Option(help="Replicas of each shard, at least.")] = 2,
    points_per_shard: Annotated[str, typer.Option(help="Points of a shard, at most.")] = "2M",
    cells: Annotated[int | None, typer.Option(help="Deployments the images are divided among.")] = None,
    cells_asked: Annotated[int | None, typer.Option(help="How many of them a search asks; default: all.")] = None,
    assume: Annotated[
        list[str] | None, typer.Option("--assume", metavar="NAME=VALUE", help="Replace an assumption; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show where every figure comes from.")] = False,
) -> None:
    """Plan the capacity of a deployment from what was measured of this code. Talks to no server."""
    workload = Workload(
        images=parse_count(images),
        qps=parse_count(qps),
        p99_s=parse_seconds(p99),
        dimension=dim,
        quantization=cast("Quantization", quantization),
        vector_type=cast("VectorType", vector_type),
        ef_search=ef_search,
        uploads_per_s=None if uploads is None else parse_count(uploads),
        replicas=replicas,
        points_per_shard=parse_count(points_per_shard),
        cells=cells,
        cells_asked=cells_asked,
    )
    made = plan(workload, dict(_pair(text) for text in assume or []), seed=seed)
    if as_json:
        console.print_json(msgspec.json.encode(made).decode())
    else:
        show(made, explain=explain)


_LEGEND = "m: measured constants went into it; a: assumptions did. --explain names them, --assume replaces the latter."


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise InvalidRequest(f"--assume {text!r} must be NAME=VALUE, as in --assume gpu_images_per_s=2500")
    return name, value


def show(made: Plan, *, explain: bool) -> None:
    """Tables by group, and what to beware of; with `explain`, the origin of every figure."""
    group = ""
    table = Table(show_header=False, box=None)
    for figure in made.figures:
        if figure.group != group:
            _print(table, group)
            group, table = figure.group, Table(show_header=False, box=None, pad_edge=False)
            table.add_column(min_width=30)
            table.add_column(justify="right", min_width=10)
            table.add_column(width=2)
            table.add_column(style="dim", overflow="fold")
        marks = ("m" if figure.measured else "") + ("a" if figure.assumed else "")
        table.add_row(figure.name, figure.shown, marks, escape(figure.how))
        if explain:
            for origin in figure.measured:
                table.add_row("", "measured", "", escape(origin))
            for origin in figure.assumed:
                table.add_row("", "assumed", "", escape(origin))
    _print(table, group)
    console.print(_LEGEND, highlight=False)
    for limit in made.limits:
        console.print(f"[bold yellow]{limit.kind}[/]: {escape(limit.what)}. {escape(limit.way_out)}", highlight=False)


def _print(table: Table, group: str) -> None:
    if table.row_count:
        console.print(f"[bold]{group}[/]", highlight=False)
        console.print(table, highlight=False)
