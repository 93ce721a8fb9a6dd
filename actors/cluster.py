"""The local Ray cluster, and how every process joins whichever cluster there is.

`python -m actors.cluster` runs a Ray head of its own: free ports, a private temporary folder, all
on 127.0.0.1, so that several instances live side by side on one machine.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ray
import structlog
from ray._private import ray_constants

from actors.logs import configure
from actors.messages import RAY_NAMESPACE
from contract.errors import RiverlensError, Unavailable
from contract.settings import Settings, load_settings
from contract.telemetry import LogField

_log = structlog.get_logger()

# Logical processors: claims of actors bound how many fit, and small claims shall always fit.
_LOGICAL_CPUS = 64
_OBJECT_STORE_BYTES = 256 * 1024 * 1024
# Ray puts Unix sockets about 65 bytes below its temporary folder; a socket path ends at 107.
_BASE_FOLDER_MAX = 24
_START_TIMEOUT_S = 90.0
_CLIENTS_LEAVE_S = 20.0
_STOP_TIMEOUT_S = 20.0
_HEAD = "--head"
_ADDRESS_FILE = "address"
_ENVIRONMENT = {
    # The default of 15 lets every other process on the machine starve the actors.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Idle workers made in advance, one per logical processor, would only cost memory.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # Set to 0, it keeps every part of a single-node Ray on 127.0.0.1, on Linux too.
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class LocalRay:
    """A Ray head in a process group of its own. Ends exactly the processes it started.

    Whoever reaches Ray can run code as its user, so it asks for a secret, which stands in
    `token_file`, readable by that user only.
    """

    def __init__(self, token_file: Path) -> None:
        base = Path(tempfile.gettempdir())
        short = base if len(str(base)) <= _BASE_FOLDER_MAX else Path("/tmp")  # noqa: S108
        self._folder = Path(tempfile.mkdtemp(prefix="rlray-", dir=short))
        token_file.parent.mkdir(parents=True, exist_ok=True)
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32))
        self._environment = {**os.environ, **_ENVIRONMENT, **_token_environment(token_file)}
        self._environment.pop("RAY_ADDRESS", None)
        # These two have fixed defaults, on which a second instance on the machine would stumble.
        self._environment |= {name: str(_free_port()) for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = _START_TIMEOUT_S) -> str:
        """Start the head and return its address `127.0.0.1:PORT`; raises Unavailable (retryable)."""
        output = self._folder / "start.log"
        command = [sys.executable, "-m", "actors.cluster", _HEAD, str(self._folder)]
        with output.open("wb") as log:
            # A session of its own: a signal to the terminal's group reaches only this process, which
            # then ends the head after everybody who uses it.
            self._process = subprocess.Popen(  # noqa: S603
                command, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        address_file = self._folder / _ADDRESS_FILE
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while not address_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = output.read_text(errors="replace")[-2000:]
                self.stop()
                raise Unavailable(f"Ray did not start; its last words: {tail}")
            pause.wait(0.05)
        return address_file.read_text()

    def alive(self) -> bool:
        """Whether the head runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the head and its workers, and remove its temporary folder. Idempotent."""
        if self._process is not None:
            process, self._process = self._process, None
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    _log.warning("ray head did not stop in time", **{LogField.DURATION_S: _STOP_TIMEOUT_S})
            _kill_group(process.pid)
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _token_environment(token_file: Path) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def _kill_group(group: int) -> None:
    """Kill what is left of a process group that this process made."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _free_port() -> int:
    """A port nobody listens on now, for servers whose port Ray does not choose itself."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _run_head(folder: Path) -> int:
    """The process under LocalRay: starts the head, says where it is, and lives until told to stop."""
    parent = os.getppid()
    # `ray start` would add the server of Ray's remote client, which nothing here uses.
    ray.init(
        num_cpus=_LOGICAL_CPUS,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        namespace=RAY_NAMESPACE,
        _temp_dir=str(folder),
    )
    stopping = _stop_event()
    partial = folder / "address.partial"
    partial.write_text(str(ray.get_runtime_context().gcs_address))
    partial.rename(folder / _ADDRESS_FILE)
    # The parent may be killed without a chance to stop this process.
    while not stopping.wait(0.5) and os.getppid() == parent:
        if dead := _dead_parts():
            sys.stderr.write(f"ended: {', '.join(dead)}\n")
            sys.stderr.flush()
            # Leaving Ray in order would wait for what is dead; LocalRay ends the rest of the group.
            os._exit(1)
    ray.shutdown()
    return 0


def _dead_parts() -> list[str]:
    """Parts of the head without which nothing works and that have ended; Ray itself says nothing of it."""
    node = ray._private.worker._global_node
    vital = {ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER}
    return [name for name, _ in node.dead_processes() if name in vital] if node is not None else []


def _stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set; called after `ray.init`, which takes SIGTERM for itself."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


def _clients_folder(settings: Settings) -> Path:
    return settings.ray_file.parent / "ray-clients"


def _mark(settings: Settings) -> Path:
    """Says that this process uses the local cluster."""
    return _clients_folder(settings) / str(os.getpid())


def _token_file(settings: Settings) -> Path:
    return settings.ray_file.with_name("ray-token")


def _clients(settings: Settings) -> list[int]:
    """Processes of this instance that joined the local cluster and still live."""
    alive = []
    for path in _clients_folder(settings).glob("*"):
        try:
            os.kill(int(path.name), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        else:
            alive.append(int(path.name))
    return alive


def _address(settings: Settings) -> str | None:
    """Address of the cluster as far as it is known now."""
    if settings.ray_address is not None:
        return settings.ray_address
    try:
        return str(json.loads(settings.ray_file.read_text())["address"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def _listens(address: str) -> bool:
    """Whether something accepts connections there; Ray's own client takes minutes to find out."""
    host, separator, port = address.rpartition("://")[2].partition(":")
    if not separator or not port.isdigit():
        return True  # such as `auto`, which only Ray can resolve
    try:
        with socket.create_connection((host, int(port)), timeout=2.0):
            return True
    except OSError:
        return False


def connect(settings: Settings, wait_s: float = 60.0, forward_logs: bool = False) -> str:
    """Join the Ray cluster of this instance in the namespace `riverlens`; returns its address.

    Waits up to `wait_s` seconds for it to come up. Does nothing in a process that has joined
    already. `forward_logs` prints what the cluster's actors print: on a cluster of this instance all of them, on
    one that others may use those that this process starts.

    Raises:
        Unavailable: no cluster within the time; retryable.
    """
    if ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    deadline = time.monotonic() + wait_s
    pause = threading.Event()
    while (address := _address(settings)) is None or not _listens(address):
        if time.monotonic() > deadline:
            hint = (
                f"start the `ray` process first (it writes {settings.ray_file})"
                if settings.ray_address is None
                else "check RIVERLENS_RAY_ADDRESS and the cluster behind it"
            )
            raise Unavailable(f"no Ray cluster at {address or 'any known address'} after {wait_s:g} s; {hint}")
        pause.wait(0.1)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if settings.ray_address is None:
        # Otherwise Ray's client turns 127.0.0.1 into the machine's address, where a local head does not
        # listen. Ray has read its variables at its import, so it is told to read them again.
        os.environ |= {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0", **_token_environment(_token_file(settings))}
        ray_constants.ENABLE_RAY_CLUSTER = False
        ray._raylet.Config.initialize("")  # type: ignore[attr-defined]
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, namespace=RAY_NAMESPACE, configure_logging=False, log_to_driver=forward_logs)
    except (ConnectionError, RuntimeError) as error:
        raise Unavailable(f"the Ray cluster at {address} refused this process: {error}") from error
    if settings.ray_address is None:
        # An actor outlives the process that started it, and is then no job's of any process that could print for it.
        ray._private.worker.global_worker._filter_logs_by_job = False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # ray.init replaces it
    if settings.ray_address is None:
        mark = _mark(settings)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        atexit.register(mark.unlink, missing_ok=True)
    return address


def leave(settings: Settings) -> None:
    """Leave the cluster that `connect` joined; a local one ends when all have left, or after a while. Idempotent."""
    ray.shutdown()
    _mark(settings).unlink(missing_ok=True)


def _run_local(settings: Settings, stopping: threading.Event) -> int:
    """Run a local head until `stopping`; the exit status."""
    # One that was killed could not withdraw its address.
    settings.ray_file.unlink(missing_ok=True)
    cluster = LocalRay(_token_file(settings))
    try:
        address = cluster.start()
        settings.ray_file.parent.mkdir(parents=True, exist_ok=True)
        partial = settings.ray_file.with_suffix(".partial")
        partial.write_text(json.dumps({"address": address}))
        partial.replace(settings.ray_file)
        _log.info("ray is up", address=address)
        while not stopping.wait(0.5):
            if not cluster.alive():
                _log.error("the ray head ended by itself")
                return 1
        # Whoever joined leaves first: a driver whose cluster is gone waits a minute before it gives up.
        settings.ray_file.unlink(missing_ok=True)
        deadline = time.monotonic() + _CLIENTS_LEAVE_S
        pause = threading.Event()
        while (clients := _clients(settings)) and time.monotonic() < deadline:
            pause.wait(0.1)
        if clients:
            _log.warning("stopping ray under processes that still use it", **{LogField.COUNT: len(clients)})
        return 0
    finally:
        settings.ray_file.unlink(missing_ok=True)
        cluster.stop()
        _token_file(settings).unlink(missing_ok=True)


def main() -> int:
    """Run the `ray` process of the Procfile; the exit status."""
    settings = load_settings()
    configure(settings, "ray")
    stopping = _stop_event()
    try:
        if settings.ray_address is None:
            return _run_local(settings, stopping)
        connect(settings)
        leave(settings)
        _log.info("the given ray cluster answers", address=settings.ray_address)
        stopping.wait()
    except RiverlensError as error:
        _log.error("ray is not available", **{LogField.CODE: error.code, LogField.ERROR: error.detail})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_run_head(Path(sys.argv[2])) if sys.argv[1:2] == [_HEAD] else main())
