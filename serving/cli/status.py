"""`riverlens status`: shards, embedders, offsets, lag and staleness as tables."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.table import Table

from serving.cli.output import console
from serving.client import Client


def print_status(client: Client, collection: str | None, *, as_json: bool) -> None:
    """Print the state of one collection, or of all; raises ServerUnreachable."""
    readiness = client.readiness()
    missing = "; ".join(readiness.missing) or None
    names = [collection] if collection else [one.name for one in client.collections()]
    found = [client.collection(name).raw for name in names]
    if as_json:
        console.print_json(json.dumps({"ready": readiness.ready, "missing": missing, "collections": found}))
        return
    console.print(
        f"{client.base_url}: " + ("[green]ready[/]" if readiness.ready else f"[yellow]not ready[/]: {missing}")
    )
    for one in found:
        _print_collection(one)


def _age(at_ms: int | None) -> str:
    """How long ago that was, in minutes; empty for never."""
    return "" if at_ms is None else f"{max(0, round((time.time() - at_ms / 1000) / 60))} min"


def _print_collection(one: dict[str, Any]) -> None:
    console.print(
        f"\n[bold]{one['name']}[/]  {one['points']} points · model {one['model']} · fingerprint {one['fingerprint']} · "
        f"{one['dimension']} dimensions",
        highlight=False,
    )
    lag = one.get("lag")
    if lag is not None and lag["messages"]:
        left = "nothing moves" if lag["drain_s"] is None else f"about {lag['drain_s']:.0f} s to drain"
        console.print(f"[yellow]{lag['messages']} events behind[/] · {left}", highlight=False)
    # What no shard has yet takes no room: the table fits into 80 columns.
    snapshots, recalls = (
        any(shard.get(field) is not None for shard in one["shards"]) for field in ("snapshot_at_ms", "recall_at_10")
    )
    shards = Table("shard", "state", "pid", "points", "growing", "lag", "stale", show_edge=False)
    if snapshots:
        shards.add_column("snapshot", no_wrap=True)
    if recalls:
        shards.add_column("recall@10", no_wrap=True)
    # By partition: the applied offset and, behind the stroke, the high watermark.
    shards.add_column("applied/high", no_wrap=True)
    for shard in one["shards"]:
        marks = shard.get("high_watermarks", {})
        offsets = "  ".join(
            f"{p}: {o}/{marks.get(p, '?')}" for p, o in sorted(shard.get("applied_offsets", {}).items())
        )
        state = shard["state"] if not shard.get("error") else f"{shard['state']}: {shard['error']}"
        name = f"{shard['shard']}/{shard['replica']}"
        cells = (name, state, shard.get("pid"), shard.get("points"), shard.get("growing"), shard.get("consumer_lag"))
        staleness, recall = shard.get("staleness_s"), shard.get("recall_at_10")
        shards.add_row(
            *("" if cell is None else str(cell) for cell in cells),
            "" if staleness is None else f"{staleness:.1f} s",
            *([_age(shard.get("snapshot_at_ms"))] if snapshots else []),
            *(["" if recall is None else f"{recall:.3f}"] if recalls else []),
            offsets,
        )
    console.print(shards)
    embedders = Table("embedder", "state", "device", "pictures", "texts", show_edge=False)
    for embedder in one.get("embedders", []):
        embedders.add_row(
            f"{embedder['role']}/{embedder['index']}",
            embedder["state"] if not embedder.get("error") else f"{embedder['state']}: {embedder['error']}",
            str(embedder.get("device") or ""),
            str(embedder.get("images_encoded", "")),
            str(embedder.get("texts_encoded", "")),
        )
    if embedders.row_count:
        console.print(embedders)
