"""The jars of the local Apache Kafka: resolved once through Maven, then checked by sha256.

They lie in `cache/kafka/VERSION/`, shared by all instances on a machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from contract.errors import Unavailable
from contract.settings import Settings
from contract.telemetry import LogField

_log = structlog.get_logger()

KAFKA_VERSION = "4.3.1"
JAVA_MIN = 17
RESOURCES = Path(__file__).parent / "kafka"
_RESOLVE_TIMEOUT_S = 600
_COPY_GOAL = "dependency:copy-dependencies"


def java_command() -> str:
    """Path of a Java that runs Kafka: `JAVA_HOME`'s, or the first on the path.

    Raises:
        Unavailable: there is none, or it is older than Java 17.
    """
    home = os.environ.get("JAVA_HOME")
    command = shutil.which("java", path=f"{home}/bin" if home else None) or shutil.which("java")
    if command is None:
        raise Unavailable(f"there is no java on the path; Apache Kafka {KAFKA_VERSION} needs Java {JAVA_MIN}")
    answer = subprocess.run([command, "-version"], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    found = re.search(r'version "(\d+)', answer.stderr)
    if found is None or int(found.group(1)) < JAVA_MIN:
        seen = answer.stderr.splitlines()[:1] or ["no version"]
        raise Unavailable(f"{command} is too old ({seen[0]}); Apache Kafka {KAFKA_VERSION} needs Java {JAVA_MIN}")
    return command


def kafka_jars(settings: Settings) -> Path:
    """Folder with exactly the listed jars, resolved through Maven if they are not there yet.

    Safe to call from several processes at once. What is found is checked every time, and resolved
    anew when a byte differs.

    Raises:
        Unavailable: there is no Maven, or it cannot reach its repository (retryable), or what came
            does not match the checksums.
    """
    folder = settings.cache_path / "kafka" / KAFKA_VERSION
    with _locked(folder.parent):
        complaint = mismatch(folder, _wanted())
        if complaint is None:
            return folder
        if folder.exists():
            _log.warning("the cached jars of Kafka are damaged; resolving them anew", **{LogField.ERROR: complaint})
        _resolve(folder)
    return folder


def mismatch(folder: Path, wanted: dict[str, str]) -> str | None:
    """What keeps a folder from holding exactly the wanted files (name → sha256); None if it does."""
    if not folder.is_dir():
        return f"{folder} is not there"
    present = {path.name for path in folder.iterdir()}
    if present != wanted.keys():
        return f"missing: {sorted(wanted.keys() - present)}, unexpected: {sorted(present - wanted.keys())}"
    for name, checksum in wanted.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != checksum:
            return f"{name} has sha256 {found}, not {checksum}"
    return None


def _wanted() -> dict[str, str]:
    lines = (RESOURCES / "jars.sha256").read_text().splitlines()
    return {name: checksum for checksum, name in (line.split() for line in lines)}


def _resolve(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable(f"there is no mvn on the path to resolve Apache Kafka {KAFKA_VERSION} with")
    _log.info("resolving Apache Kafka through Maven, once (45 MB)", version=KAFKA_VERSION)
    staging = Path(tempfile.mkdtemp(prefix="resolving-", dir=folder.parent))
    try:
        # A copy of the pom: Maven writes beside it.
        pom = Path(shutil.copy(RESOURCES / "pom.xml", staging))
        jars = staging / "jars"
        command = [maven, "-q", "-B", "-f", str(pom), _COPY_GOAL, f"-DoutputDirectory={jars}", "-DincludeScope=runtime"]
        try:
            done = subprocess.run(  # noqa: S603
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=_RESOLVE_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"Maven did not end within {_RESOLVE_TIMEOUT_S} s") from error
        if done.returncode != 0:
            lines = [line for line in done.stdout.splitlines() if "ERROR" in line] or [done.stderr.strip()]
            raise Unavailable(f"Maven could not resolve Apache Kafka {KAFKA_VERSION}: {lines[0][:400]}")
        complaint = mismatch(jars, _wanted())
        if complaint is not None:
            raise Unavailable(f"Maven brought other jars of Apache Kafka {KAFKA_VERSION} than listed: {complaint}")
        if folder.exists():
            shutil.rmtree(folder)
        jars.rename(folder)
    finally:
        shutil.rmtree(staging)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which also goes when its holder dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
