"""The commands and their options; each calls one plain function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from contract.errors import InvalidRequest
from contract.filters import decode_filter
from contract.settings import load_settings
from serving.cli import dead_letter_commands, keys
from serving.cli import demo as demo_run
from serving.cli import index as index_run
from serving.cli import plan as plan_command
from serving.cli import up as up_run
from serving.cli.connection import connect
from serving.cli.output import console, print_hits
from serving.cli.sources import read_vector
from serving.cli.status import print_status
from serving.client import Client, Retry

app = typer.Typer(
    name="riverlens",
    help="Real-time image search: upload, and find it a second later.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(dead_letter_commands.app)
app.add_typer(keys.app, name="keys")
app.command(name="plan")(plan_command.command)

UrlOption = Annotated[str | None, typer.Option("--url", help="Address of the server; default from the settings.")]
CollectionOption = Annotated[
    str | None, typer.Option("--collection", "-c", help="Collection; default from the settings.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")]


def _client(url: str | None) -> Client:
    try:
        return connect(load_settings(), url, retry=Retry(attempts=3))
    except ValueError as error:
        raise InvalidRequest(f"--url: {error}") from error


def _collection(name: str | None) -> str:
    return name or load_settings().collection


def parse_crop(text: str | None) -> tuple[float, float, float, float] | None:
    """`x,y,width,height` as fractions of the picture; raises InvalidRequest."""
    if text is None:
        return None
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidRequest(f"--crop {text!r} must be x,y,width,height as fractions, such as 0,0,0.5,1") from error
    return (x, y, width, height)


def parse_filter(text: str | None) -> dict[str, Any] | None:
    """A filter as JSON; raises InvalidRequest if the server could not take it either."""
    if text is None:
        return None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(
            f"--filter is not JSON ({error}); it may be, in single quotes: "
            '{"must": [{"key": "owner", "match": {"value": "ada"}}]}'
        ) from error
    decode_filter(data)
    return dict(data)


@app.command()
def up() -> None:
    """Run everything in the foreground: broker, Ray, supervisor, ingest, HTTP. Ctrl-C stops it."""
    raise typer.Exit(up_run.run(load_settings()))


@app.command()
def status(url: UrlOption = None, collection: CollectionOption = None, as_json: JsonOption = False) -> None:
    """Show processes, shards, offsets, lag and staleness."""
    with _client(url) as client:
        print_status(client, collection, as_json=as_json)


@app.command()
def index(
    source: Annotated[str, typer.Argument(help="A folder, a picture, a glob, a CSV or a Parquet file.")],
    url: UrlOption = None,
    collection: CollectionOption = None,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Uploads side by side.")] = 4,
    again: Annotated[bool, typer.Option("--again", help="Upload also what an earlier run uploaded.")] = False,
) -> None:
    """Upload many pictures with a progress bar. Interrupted, the next run goes on where it stopped."""
    with _client(url) as client:
        outcome = index_run.run(
            client, _collection(collection), source, load_settings().home_path, parallel=parallel, again=again
        )
    raise typer.Exit(0 if not outcome.failed else 1)


@app.command()
def search(
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="A picture to search by.")] = None,
    image_id: Annotated[str | None, typer.Option("--id", help="An indexed image to search by.")] = None,
    vector: Annotated[
        Path | None, typer.Option("--vector", metavar="FILE.npy", help="A vector of your own to search by.")
    ] = None,
    crop: Annotated[str | None, typer.Option(help="x,y,width,height of the query picture, as fractions.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many hits.")] = 10,
    payload_filter: Annotated[
        str | None, typer.Option("--filter", metavar="JSON", help="Only images whose payload satisfies it.")
    ] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Search captions, tags and file names as well.")] = False,
    url: UrlOption = None,
    collection: CollectionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search by words, by a picture, by an indexed image, or by a vector."""
    if text is None and image is None and image_id is None and vector is None:
        raise InvalidRequest(
            "nothing to search by: give words, --image FILE, --id ID or --vector FILE.npy, "
            'as in: riverlens search "a bird"'
        )
    wanted = parse_filter(payload_filter)
    numbers = None if vector is None else read_vector(vector)
    with _client(url) as client:
        answer = client.search(
            _collection(collection),
            text=text,
            image=image,
            image_id=image_id,
            vector=numbers,
            crop=parse_crop(crop),
            limit=limit,
            filter=wanted,
            hybrid=hybrid or None,
        )
    if as_json:
        console.print_json(json.dumps(answer.raw))
    else:
        print_hits(text or f"like {image or image_id or vector}", answer)


@app.command()
def delete(
    ids: Annotated[list[str], typer.Argument(help="Ids of the images to delete.")],
    url: UrlOption = None,
    collection: CollectionOption = None,
) -> None:
    """Delete images; returns when no search returns them any more."""
    with _client(url) as client:
        for image_id in ids:
            client.delete(_collection(collection), image_id, wait="searchable")
            console.print(f"deleted {image_id}", highlight=False)


@app.command()
def collections(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the collections."""
    with _client(url) as client:
        found = client.collections()
    if as_json:
        console.print_json(json.dumps([one.raw for one in found]))
        return
    table = Table("name", "state", "model", show_edge=False)
    for one in found:
        table.add_row(one.name, one.state, one.model)
    console.print(table)


@app.command()
def demo(
    start: Annotated[bool, typer.Option("--up", help="Start the whole system first.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Stop the system again after the queries.")] = False,
    url: UrlOption = None,
    collection: CollectionOption = None,
) -> None:
    """Index the shipped sample pictures and run a text, a picture and a crop query."""
    settings = load_settings()
    raise typer.Exit(
        demo_run.run(settings, url or settings.base_url, _collection(collection), start=start, detach=detach)
    )
