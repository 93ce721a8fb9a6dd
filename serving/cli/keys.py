"""`riverlens keys`: API keys, written straight into the log: who can reach the broker needs no key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, cast

import typer
from rich.table import Table

from actors.log.connection import bootstrap_servers
from actors.log.keys import KeyRegistry
from contract.errors import InvalidRequest
from contract.keys import SCOPES, ApiKey, Scope
from contract.settings import load_settings
from serving.access.keys import make_key, revoked
from serving.cli.output import console
from serving.events import now_ms

_BROKER_WITHIN_S = 10.0

app = typer.Typer(help="Make, list and revoke API keys, on the machine of the server.", no_args_is_help=True)


@contextmanager
def _registry() -> Iterator[KeyRegistry]:
    settings = load_settings()
    bootstrap_servers(settings, _BROKER_WITHIN_S)
    registry = KeyRegistry(settings)
    try:
        yield registry
    finally:
        registry.close()


@app.command()
def create(
    owner: Annotated[str, typer.Option(help="Who uploads with it, and whose private images it sees.")],
    scope: Annotated[list[str], typer.Option(help="read, write or admin; may be repeated.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Make a key and print it, this once: only its digest is kept."""
    unknown = sorted(set(scope) - set(SCOPES))
    if unknown:
        raise InvalidRequest(f"--scope {unknown[0]!r} is none of {', '.join(SCOPES)}")
    record, key = make_key(owner, cast(tuple[Scope, ...], tuple(scope)), now_ms())
    with _registry() as registry:
        registry.put(record)
    if as_json:
        print(json.dumps({"key_id": record.key_id, "owner": owner, "scopes": record.scopes, "key": key}))  # noqa: T201
        return
    console.print(f"key {record.key_id} of {owner} ({', '.join(record.scopes)}); it is shown this once:")
    print(key)  # noqa: T201 — neither wrapped nor coloured, to be copied or piped


@app.command("list")
def list_keys(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List all keys, the oldest first."""
    with _registry() as registry:
        known = sorted(registry.refresh().values(), key=lambda key: key.created_at_ms)
    if as_json:
        print(json.dumps([_row(key) for key in known]))  # noqa: T201
        return
    table = Table("id", "owner", "scopes", "made", "revoked", show_edge=False)
    for key in known:
        table.add_row(key.key_id, key.owner, ", ".join(key.scopes), _time(key.created_at_ms), _time(key.revoked_at_ms))
    console.print(table)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="Id of the key, as `list` shows it.")]) -> None:
    """Revoke a key; every replica of the API refuses it within a second."""
    with _registry() as registry:
        registry.put(revoked(registry.refresh(), key_id, now_ms()))
    console.print(f"revoked {key_id}", highlight=False)


def _row(key: ApiKey) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "owner": key.owner,
        "scopes": key.scopes,
        "created_at_ms": key.created_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
    }


def _time(at_ms: int | None) -> str:
    return "" if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
