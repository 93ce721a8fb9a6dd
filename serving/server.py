"""`python -m serving.server`: the `api` process. Runs the HTTP API on Ray Serve until it is stopped."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time

import structlog
from ray import serve
from ray.serve import Application
from ray.serve.config import ProxyLocation
from ray.serve.schema import LoggingConfig

from actors.cluster import connect
from actors.log.connection import bootstrap_servers
from actors.log.registry import CollectionRegistry
from actors.logs import configure
from contract.errors import BrokerUnavailable, RiverlensError, Unavailable
from contract.settings import Settings, load_settings
from contract.telemetry import LogField
from serving.application import bind

_log = structlog.get_logger()

APPLICATION = "riverlens"
_START_TIMEOUT_S = 180.0
_DEPLOY_ATTEMPTS = 3


def main() -> int:
    """Run the `api` process of the Procfile; the exit status."""
    settings = load_settings()
    configure(settings, "api")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        return _serve(settings, stopping)
    except RiverlensError as error:
        _log.error("the api cannot run", **{LogField.CODE: error.code, LogField.ERROR: error.detail})
        return 1


def _serve(settings: Settings, stopping: threading.Event) -> int:
    bootstrap_servers(settings, _START_TIMEOUT_S)
    # The supervisor prints what every actor and replica of a cluster of this instance logs.
    connect(settings, _START_TIMEOUT_S)
    if not _await_collection(settings, stopping):
        return 0
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    # Replicas listen themselves.
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
    try:
        _deploy(bind(settings), quiet)
        _log.info("the api is up", url=settings.base_url)
        stopping.wait()
        _log.info("the api stops")
    finally:
        if settings.ray_address is None:
            serve.shutdown()  # type: ignore[no-untyped-call]
        else:
            # Others may serve from the same cluster.
            serve.delete(APPLICATION)
    return 0


def _deploy(api: Application, logging_config: LoggingConfig) -> None:
    """Return when replicas answer; raises RuntimeError when Serve has failed to start them several times."""
    for attempt in range(1, _DEPLOY_ATTEMPTS + 1):
        try:
            serve.run(api, name=APPLICATION, route_prefix=None, logging_config=logging_config)
        except RuntimeError as error:
            # While everything else starts beside it, Serve's first try may fail.
            if attempt == _DEPLOY_ATTEMPTS:
                raise
            _log.warning("the api did not start; trying again", **{LogField.ERROR: str(error)})
        else:
            return


def _await_collection(settings: Settings, stopping: threading.Event) -> bool:
    """Whether there is a collection to serve; False when the process is stopped before.

    Raises Unavailable when the supervisor has made none in time.
    """
    registry = CollectionRegistry(settings)
    deadline = time.monotonic() + _START_TIMEOUT_S
    try:
        while not stopping.wait(0.2):
            try:
                if registry.refresh():
                    return True
            except BrokerUnavailable as error:
                _log.warning("waiting for the broker", **{LogField.ERROR: error.detail})
            if time.monotonic() > deadline:
                raise Unavailable(f"the supervisor made no collection within {_START_TIMEOUT_S:g} s")
        return False
    finally:
        registry.close()


if __name__ == "__main__":
    sys.exit(main())
