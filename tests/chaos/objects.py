"""Faults of the object store, and the store itself: moto's S3 behind the proxy."""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections.abc import Iterator

from moto.server import ThreadedMotoServer

from tests.chaos.faults import Fault
from tests.chaos.object_proxy import Mode, ObjectProxy
from tests.chaos.target import Target
from tests.integration.s3 import CREDENTIALS, client

_BUCKET = "pictures"


class ObjectsFail(Fault):
    """The object store answers 503, slowly, or with half of every body for a while."""

    hold_s = 15.0
    # Fetches are tried again for a while; what cannot be had by then is to be redriven.
    rejects = frozenset({"object_store_unavailable", "object_damaged"})

    def __init__(self, proxy: ObjectProxy, mode: Mode) -> None:
        self.name = f"objects-{mode}"
        self._proxy = proxy
        self._mode = mode

    def apply(self, target: Target, rng: random.Random) -> None:
        self._proxy.harmed = 0
        self._proxy.mode = self._mode

    def heal(self, target: Target) -> None:
        self._proxy.mode = "pass"
        assert self._proxy.harmed, "nobody asked the object store"


@contextlib.contextmanager
def object_store() -> Iterator[tuple[ObjectProxy, dict[str, str]]]:
    """A running store behind a proxy, and the settings of a system that uses it."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client(endpoint).create_bucket(Bucket=_BUCKET)
    proxy = ObjectProxy(endpoint)
    options = {**CREDENTIALS, "endpoint": proxy.endpoint}
    try:
        yield (
            proxy,
            {
                "RIVERLENS_OBJECT_STORE_URL": f"s3://{_BUCKET}/chaos",
                "RIVERLENS_OBJECT_STORE_OPTIONS": json.dumps(options),
            },
        )
    finally:
        proxy.close()
        server.stop()


def object_faults(proxy: ObjectProxy) -> dict[str, Fault]:
    """All of them by name."""
    modes: tuple[Mode, ...] = ("5xx", "slow", "half")
    return {fault.name: fault for fault in (ObjectsFail(proxy, mode) for mode in modes)}
