"""`riverlens demo`: the shipped pictures, indexed and searched by words, by picture and by crop."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from contract.errors import Unavailable
from contract.settings import Settings
from serving.cli import index
from serving.cli.connection import connect
from serving.cli.output import console, print_hits
from serving.client import Client

SAMPLES = Path(__file__).parent.parent.parent / "samples"
QUERIES = ("a cat", "something to eat", "a musical instrument")
_START_WITHIN_S = 420.0
_STOP_WITHIN_S = 180.0


def run(settings: Settings, url: str, collection: str, *, start: bool, detach: bool) -> int:
    """Index and search; with `start` run the system too: until Ctrl-C, or until the end when `detach`."""
    # `kill` stops what was started here as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _system(settings, url) if start else contextlib.nullcontext() as system:
        with connect(settings, url) as client:
            outcome = index.run(
                client, collection, str(SAMPLES / "captions.csv"), settings.home_path, parallel=4, again=False
            )
            _queries(client, collection)
        console.print(f"\nOpen [bold]{url}/[/] in a browser; the API is described at {url}/docs", highlight=False)
        if system is not None and not detach:
            console.print('Everything runs until Ctrl-C. In another shell: riverlens search "a bird"', highlight=False)
            return _until_stopped(system)
    return 1 if outcome.failed else 0


def _queries(client: Client, collection: str) -> None:
    for text in QUERIES:
        print_hits(f'\nwords: "{text}"', client.search(collection, text=text, limit=5))
    first = SAMPLES / _hit_file(client, collection, QUERIES[0])
    print_hits(f"\npicture: {first.name}", client.search(collection, image=first, limit=5))
    second = SAMPLES / _hit_file(client, collection, QUERIES[2])
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.png"
        _side_by_side(first, second, sheet)
        print_hits(
            f"\ncrop: the right half of {first.name} beside {second.name}",
            client.search(collection, image=sheet, crop=(0.5, 0.0, 0.5, 1.0), limit=5),
        )


def _hit_file(client: Client, collection: str, text: str) -> str:
    """File name of the first sample picture among the hits; other pictures may be indexed beside them."""
    hits = client.search(collection, text=text, limit=50).hits
    for hit in hits:
        name = str((hit.payload or {}).get("file_name", ""))
        if name and (SAMPLES / name).is_file():
            return name
    raise Unavailable(f"no sample picture among the hits for {text!r}: index samples/captions.csv first")


def _side_by_side(left: Path, right: Path, target: Path, side: int = 256) -> None:
    sheet = Image.new("RGB", (2 * side, side), "white")
    for x, path in ((0, left), (side, right)):
        with Image.open(path) as picture:
            square = picture.convert("RGBA").resize((side, side))
        sheet.paste(square, (x, 0), square)
    sheet.save(target)


@contextlib.contextmanager
def _system(settings: Settings, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """`riverlens up` as a child, its output in a file, ready when this returns."""
    log = settings.home_path / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        # Its own session: Ctrl-C reaches this process alone, which then stops the child in order.
        system = subprocess.Popen(
            [sys.executable, "-m", "serving.cli", "up"], stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_ready(system, settings, url, log)
        yield system
    finally:
        if system.poll() is None:
            with console.status("stopping everything …"):
                system.send_signal(signal.SIGINT)
                system.wait(_STOP_WITHIN_S)


def _wait_ready(system: subprocess.Popen[bytes], settings: Settings, url: str, log: Path) -> None:
    pause = threading.Event()
    began, said = time.monotonic(), ""
    with connect(settings, url, deadline_s=10) as client, console.status("starting …") as line:
        console.print(f"starting the system; its log is {log}", highlight=False)
        while not (readiness := client.readiness()).ready:
            missing = "; ".join(readiness.missing)
            if system.poll() is not None or time.monotonic() - began > _START_WITHIN_S:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
                why = "ended" if system.poll() is not None else f"was not ready in {_START_WITHIN_S:.0f} s ({missing})"
                raise Unavailable(f"the system {why}; the end of {log}:\n{tail}")
            line.update(f"starting: {missing}")
            if missing != said and not console.is_terminal:
                console.print(f"starting: {missing}", highlight=False)
                said = missing
            pause.wait(0.5)
    console.print(f"ready after {time.monotonic() - began:.0f} s")


def _until_stopped(system: subprocess.Popen[bytes]) -> int:
    try:
        code = system.wait()
    except KeyboardInterrupt:
        return 0
    console.print("[bold red]the system ended by itself[/]")
    return code or 1
