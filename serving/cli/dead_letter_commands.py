"""The command group `riverlens dead-letter`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from contract.errors import InvalidRequest
from contract.settings import load_settings
from serving.cli.connection import connect
from serving.cli.dead_letters import parse_age, print_letter, print_letters, settle
from serving.client import Client, Retry
from serving.client.options import LetterMatch

app = typer.Typer(
    name="dead-letter", help="Events that led to nothing: list, show, redrive, drop.", no_args_is_help=True
)

_Url = Annotated[str | None, typer.Option("--url", help="Address of the server; default from the settings.")]
_Collection = Annotated[str | None, typer.Option("--collection", "-c", help="Collection; default from the settings.")]
_Ids = Annotated[list[str] | None, typer.Argument(help="PARTITION-OFFSET of each; or say which with the options.")]
_Code = Annotated[str | None, typer.Option("--code", help="Only those with this error code.")]
_Stage = Annotated[str | None, typer.Option("--stage", help="Only those that failed in this stage.")]
_Retryable = Annotated[
    bool | None, typer.Option("--retryable/--not-retryable", help="Only those that may succeed later, or not.")
]
_Image = Annotated[str | None, typer.Option("--image", help="Only those of this image id.")]
_Since = Annotated[str | None, typer.Option("--since", metavar="AGE", help="Only younger ones; as in 30m, 2h, 7d.")]
_Until = Annotated[str | None, typer.Option("--until", metavar="AGE", help="Only older ones.")]
_All = Annotated[bool, typer.Option("--all", help="All that wait.")]


def _client(url: str | None) -> Client:
    try:
        return connect(load_settings(), url, retry=Retry(attempts=3))
    except ValueError as error:
        raise InvalidRequest(f"--url: {error}") from error


def _named(collection: str | None) -> str:
    return collection or load_settings().collection


def _match(
    code: str | None, stage: str | None, retryable: bool | None, image: str | None, since: str | None, until: str | None
) -> LetterMatch:
    return LetterMatch(
        code=code,
        stage=stage,
        retryable=retryable,
        image_id=image,
        since_ms=parse_age(since),
        until_ms=parse_age(until),
    )


@app.command("list")
def list_letters(
    state: Annotated[Literal["waiting", "redriven", "dropped", "any"], typer.Option(help="Which ones.")] = "waiting",
    code: _Code = None,
    stage: _Stage = None,
    retryable: _Retryable = None,
    image: _Image = None,
    since: _Since = None,
    until: _Until = None,
    limit: Annotated[int, typer.Option(min=1, help="Most letters.")] = 20,
    url: _Url = None,
    collection: _Collection = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")] = False,
) -> None:
    """List events that led to nothing, newest first."""
    match = _match(code, stage, retryable, image, since, until)
    with _client(url) as client:
        print_letters(client, _named(collection), state, match, limit, as_json=as_json)


@app.command()
def show(
    letter: Annotated[str, typer.Argument(help="PARTITION-OFFSET.")],
    url: _Url = None,
    collection: _Collection = None,
) -> None:
    """Show one letter with its event, as JSON."""
    with _client(url) as client:
        print_letter(client, _named(collection), letter)


@app.command()
def redrive(
    ids: _Ids = None,
    code: _Code = None,
    stage: _Stage = None,
    retryable: _Retryable = None,
    image: _Image = None,
    since: _Since = None,
    until: _Until = None,
    every: _All = False,
    url: _Url = None,
    collection: _Collection = None,
) -> None:
    """Send events again, exactly as they were. One whose image has a newer event is refused."""
    match = _match(code, stage, retryable, image, since, until)
    with _client(url) as client:
        raise typer.Exit(settle(client, _named(collection), "redrive", ids or [], match, every=every))


@app.command()
def drop(
    ids: _Ids = None,
    code: _Code = None,
    stage: _Stage = None,
    retryable: _Retryable = None,
    image: _Image = None,
    since: _Since = None,
    until: _Until = None,
    every: _All = False,
    url: _Url = None,
    collection: _Collection = None,
) -> None:
    """Mark letters as done with; they are listed with --state dropped."""
    match = _match(code, stage, retryable, image, since, until)
    with _client(url) as client:
        raise typer.Exit(settle(client, _named(collection), "drop", ids or [], match, every=every))
