"""Writers and readers against the real HTTP API, who write down everything that was acknowledged to them."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from msgspec import Struct

from tests.chaos.history import FinalImage, FinalLetter, FinalListing, History, Outcome, Receipt, Search, Write
from tests.integration.pictures import new_picture
from tests.integration.system import eventually

_LIMIT = 3
_TIMEOUT_S = 40.0
_LOOKING = 6
_APPLIED_WITHIN_S = 120.0
_COLLECTION = "/v1/collections/images"
_IMAGES = f"{_COLLECTION}/images"
_LETTERS = f"{_COLLECTION}/dead-letters"
_SEARCH = f"{_COLLECTION}/search"


class Known(Struct):
    """An id as its writer knows it."""

    image_id: str
    version: int
    picture: int
    receipt: Receipt | None = None


class Api:
    """The calls of the workload; each is written to the history. Thread-safe.

    A write returns None, and is no part of the history, when nobody listened: then nothing was sent.
    """

    def __init__(self, base_url: str, history: History) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=_TIMEOUT_S)
        self._history = history

    def upload(self, image_id: str, version: int, picture: int, wait: str) -> Write | None:
        """Upload the picture drawn from the seed `picture`."""
        data = new_picture(picture, 96)
        return self._write(
            Known(image_id, version, picture),
            "upload",
            lambda: self._http.post(
                _IMAGES,
                params={"wait": wait},
                files={"file": ("picture.png", data)},
                data={"id": image_id, "payload": json.dumps({"version": version, "picture": picture})},
            ),
        )

    def delete(self, known: Known, wait: str) -> Write | None:
        """Delete an id."""
        gone = Known(known.image_id, 0, known.picture)
        return self._write(
            gone, "delete", lambda: self._http.delete(f"{_IMAGES}/{known.image_id}", params={"wait": wait})
        )

    def patch(self, known: Known, version: int, wait: str) -> Write | None:
        """Change the payload of an id to another version."""
        changed = Known(known.image_id, version, known.picture)
        body = {"payload": {"version": version, "picture": known.picture}}
        return self._write(
            changed,
            "patch",
            lambda: self._http.patch(f"{_IMAGES}/{known.image_id}", params={"wait": wait}, json=body),
        )

    def _write(self, after: Known, kind: Any, call: Any) -> Write | None:
        start_s = time.monotonic()
        status: int | None = None
        body: dict[str, Any] = {}
        try:
            response = call()
            status, body = response.status_code, _json(response)
        except httpx.ConnectError:
            return None
        except httpx.TransportError:
            outcome: Outcome = "unknown"
        else:
            outcome = _outcome(status, body)
        receipt = body.get("receipt")
        write = Write(
            kind=kind,
            image_id=after.image_id,
            version=after.version,
            picture=after.picture,
            start_s=start_s,
            end_s=time.monotonic(),
            outcome=outcome,
            status=status,
            code=body.get("code"),
            retryable=body.get("retryable"),
            receipt=Receipt(**receipt) if receipt else None,
        )
        self._history.add(write)
        return write

    def search(self, known: Known, min_receipt: Receipt | None) -> Search:
        """Search by the picture of an id."""
        form = {"limit": str(_LIMIT)}
        if min_receipt is not None:
            form["min_receipt"] = json.dumps({"partition": min_receipt.partition, "offset": min_receipt.offset})
        data = new_picture(known.picture, 96)
        start_s = time.monotonic()
        status: int | None = None
        body: dict[str, Any] = {}
        try:
            response = self._http.post(_SEARCH, files={"image": ("query.png", data)}, data=form)
            status, body = response.status_code, _json(response)
        except httpx.TransportError:
            status = None
        coverage, freshness = body.get("coverage", {}), body.get("freshness", {})
        search = Search(
            image_id=known.image_id,
            picture=known.picture,
            start_s=start_s,
            end_s=time.monotonic(),
            status=status,
            limit=_LIMIT,
            min_receipt=min_receipt,
            code=body.get("code"),
            retryable=body.get("retryable"),
            hits=tuple(hit["id"] for hit in body.get("hits", ())),
            shards_total=coverage.get("shards_total", 0),
            shards_answered=coverage.get("shards_answered", 0),
            degraded=coverage.get("degraded", False),
            applied_offsets={int(p): at for p, at in freshness.get("applied_offsets", {}).items()},
        )
        self._history.add(search)
        return search

    def await_applied(self, receipts: Iterable[Receipt]) -> None:
        """Wait until all that was acknowledged is applied, and whatever else is in the log; fails after a while."""
        newest: dict[int, Receipt] = {}
        for receipt in receipts:
            newest[receipt.partition] = max(receipt, newest.get(receipt.partition, receipt), key=lambda r: r.offset)
        wanted = [{"partition": receipt.partition, "offset": receipt.offset} for receipt in newest.values()]
        body = {"text": "a shape", "min_receipt": wanted}
        eventually(lambda: self._http.post(_SEARCH, json=body).status_code == 200, _APPLIED_WITHIN_S)
        eventually(lambda: self._http.get(_COLLECTION).json()["lag"]["messages"] == 0, _APPLIED_WITHIN_S)

    def look_at(self, known: Known) -> FinalImage:
        """What the system says of an id in the end: its own page, and a search by the picture it shows."""
        response = self._http.get(f"{_IMAGES}/{known.image_id}")
        body = _json(response)
        payload = body.get("payload") or {}
        there = response.status_code == 200 and body.get("state") in {"searchable", "duplicate"}
        picture = payload.get("picture", known.picture) if there else known.picture
        hits = self.search(Known(known.image_id, 0, picture), None).hits
        final = FinalImage(
            image_id=known.image_id,
            version=payload.get("version", -1) if there else None,
            found=known.image_id in hits,
            rejection_offset=(body.get("rejection") or {}).get("offset"),
        )
        self._history.add(final)
        return final

    def list_letters(self) -> None:
        """Write down every dead letter."""
        eventually(lambda: self._http.get(_LETTERS).raise_for_status().json()["unread"] == 0, _APPLIED_WITHIN_S)
        cursor: str | None = None
        while True:
            params = {"state": "any", "limit": "500", **({"cursor": cursor} if cursor else {})}
            page = self._http.get(_LETTERS, params=params).raise_for_status().json()
            for letter in page["dead_letters"]:
                partition, _, offset = letter["id"].partition("-")
                self._history.add(
                    FinalLetter(
                        image_id=letter["image_id"] or "",
                        receipt=Receipt(int(partition), int(offset)),
                        code=letter["code"],
                        retryable=letter["retryable"],
                    )
                )
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def list_all(self) -> FinalListing:
        """Every id of the listing, and the points that the shards count."""
        ids: list[str] = []
        cursor: str | None = None
        while True:
            params = {"limit": "500", **({"cursor": cursor} if cursor else {})}
            page = self._http.get(_IMAGES, params=params).raise_for_status().json()
            ids += [image["id"] for image in page["images"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        points = self._http.get(_COLLECTION).raise_for_status().json()["points"]
        listing = FinalListing(ids=tuple(ids), points=points)
        self._history.add(listing)
        return listing

    def close(self) -> None:
        """Let the connection go."""
        self._http.close()


class Workload:
    """Runs writers and readers in threads until it is stopped. What each does is decided by the seed."""

    def __init__(
        self, base_url: str, history: History, seed: int, *, writers: int = 3, readers: int = 2, pause_s: float = 0.3
    ) -> None:
        self._base_url = base_url
        self._history = history
        self._seed = seed
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._latest: dict[str, Known] = {}
        self._failures: list[BaseException] = []
        bodies = [(self._write, n) for n in range(writers)] + [(self._read, n) for n in range(readers)]
        self._threads = [threading.Thread(target=self._guard, args=body, daemon=True) for body in bodies]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, once what is under way was answered; raises what the workload itself failed with."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(3 * _TIMEOUT_S)
            assert not thread.is_alive(), "a caller of the API waits for ever"
        if self._failures:
            raise self._failures[0]

    def canary(self, number: int) -> bool:
        """Whether an upload is searchable at once, and whole searches find it: the system works again."""
        api = Api(self._base_url, self._history)
        try:
            picture = self._picture(99, number)
            known = Known(f"canary-{number}", 1, picture)
            write = api.upload(known.image_id, 1, picture, "searchable")
            if write is None:
                return False
            self._publish(known, write)
            if write.outcome != "ok" or write.status != 201:
                return False
            search = api.search(known, write.receipt)
            return search.status == 200 and search.degraded is False and known.image_id in search.hits
        finally:
            api.close()

    def look_at_everything(self) -> None:
        """Write down what the whole system says of every id, and of all together."""
        api = Api(self._base_url, self._history)
        try:
            # A deletion that is only logged is not yet anything that the shards know.
            api.await_applied(known.receipt for known in self._latest.values() if known.receipt is not None)
            with ThreadPoolExecutor(_LOOKING) as pool:
                list(pool.map(api.look_at, list(self._latest.values())))
            api.list_all()
            api.list_letters()
        finally:
            api.close()

    def _guard(self, body: Any, number: int) -> None:
        try:
            body(number)
        except BaseException as error:  # noqa: BLE001 - raised again by `stop`
            self._failures.append(error)

    def _picture(self, writer: int, number: int) -> int:
        return (self._seed * 100 + writer) * 100_000 + number

    def _publish(self, known: Known, write: Write) -> None:
        with self._lock:
            known.receipt = write.receipt
            self._latest[known.image_id] = known

    def _write(self, writer: int) -> None:
        rng = random.Random(self._seed * 1000 + writer)
        api = Api(self._base_url, self._history)
        mine: list[Known] = []
        gone: list[Known] = []
        number = 0
        while not self._stopping.wait(rng.uniform(0, 2 * self._pause_s)):
            number += 1
            wait = "searchable" if rng.random() < 0.2 else "logged"
            picture = self._picture(writer, number)
            choice = rng.random()
            taken_from: list[Known] = []
            if choice < 0.12 and gone:
                taken_from, known = gone, gone.pop(rng.randrange(len(gone)))
                write = api.upload(known.image_id, number, picture, wait)
            elif choice < 0.5 or not mine:
                known = Known(f"w{writer}-{number}", number, picture)
                write = api.upload(known.image_id, number, picture, wait)
            else:
                taken_from, known = mine, mine.pop(rng.randrange(len(mine)))
                if choice < 0.67:
                    write = api.upload(known.image_id, number, picture, wait)
                elif choice < 0.83:
                    write = api.patch(known, number, wait)
                else:
                    write = api.delete(known, wait)
            if write is None:
                taken_from.append(known)
                self._stopping.wait(1.0)
                continue
            after = Known(known.image_id, write.version, write.picture)
            self._publish(after, write)
            if write.outcome != "ok":
                # As `Retry-After` asks for.
                self._stopping.wait(1.0)
            # An id whose state nobody knows is left alone, so that what may have happened to it stays a small set.
            if write.outcome == "ok":
                (gone if write.kind == "delete" else mine).append(after)
        api.close()

    def _read(self, reader: int) -> None:
        rng = random.Random(self._seed * 1000 + 500 + reader)
        api = Api(self._base_url, self._history)
        while not self._stopping.wait(rng.uniform(0, 2 * self._pause_s)):
            with self._lock:
                choices = list(self._latest.values())
            if not choices:
                continue
            # Mostly what was written last: that is what a fault may lose.
            known = rng.choice(choices[-20:] if rng.random() < 0.6 else choices)
            if api.search(known, known.receipt if rng.random() < 0.4 else None).status != 200:
                self._stopping.wait(1.0)
        api.close()


def _json(response: httpx.Response) -> dict[str, Any]:
    if not response.headers.get("content-type", "").endswith("json"):
        return {}
    body = response.json()
    return body if isinstance(body, dict) else {}


def _outcome(status: int, body: dict[str, Any]) -> Outcome:
    if body.get("receipt") and (status < 300 or body.get("code") == "not_searchable_in_time"):
        return "ok"
    if body.get("receipt") and body.get("code") == "image_rejected":
        return "rejected"
    if status < 300:
        return "ok"
    # The event may be in the log although its confirmation did not come.
    return "unknown" if body.get("retryable") else "refused"
