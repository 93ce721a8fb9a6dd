"""Mutate real pictures, send them through the decoding processes, and watch the processes.

Whatever comes in, one of two things must happen: pixels, or a refusal that is no retryable error. No
process may die or hang under it, and none may keep what a picture made it take.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from actors.decoding.pool import DecodingPool
from actors.messages import PreprocessSpec
from contract.errors import InvalidImage
from contract.settings import Settings

SAMPLES = Path(__file__).parent.parent.parent / "samples"
HEIC = Path(__file__).parent.parent / "unit" / "pictures" / "turned.heic"
SPEC = PreprocessSpec(64, "fit", "bicubic", 0.0, (255, 255, 255), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RSS_MAX_BYTES = 400 * 1024 * 1024
"""What a process may hold at rest: its libraries take 40 MB, the rest is what the allocator keeps."""
_INTERESTING = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1")
_AT_ONCE = 4


@dataclass
class FuzzReport:
    """What a run did. `seed` and `pictures` repeat it; `culprits` are bytes under which a process died or hung."""

    seed: int
    pictures: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    culprits: list[bytes] = field(default_factory=list)
    rss_bytes: int = 0


def seeds() -> list[bytes]:
    """Real pictures in every format, and in the modes that take other ways through the decoders."""
    some = [Image.open(path).convert("RGBA") for path in sorted(SAMPLES.glob("*.png"))[::60]]
    made = [HEIC.read_bytes()]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "somewhere"
    for image in some:
        rgb = image.convert("RGB")
        made += [
            _encoded(image, "PNG", exif=exif),
            _encoded(image.convert("P"), "PNG"),
            _encoded(image.convert("I;16"), "PNG") if image.width % 2 else _encoded(image.convert("LA"), "PNG"),
            _encoded(rgb, "JPEG", exif=exif),
            _encoded(rgb, "JPEG", progressive=True),
            _encoded(rgb.convert("CMYK"), "JPEG"),
            _encoded(image, "WEBP", exif=exif),
            _encoded(image, "WEBP", lossless=True),
            _encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
            _encoded(rgb, "BMP"),
            _encoded(rgb, "TIFF", compression="tiff_lzw"),
            _encoded(rgb, "TIFF", compression="jpeg"),
            _encoded(rgb, "TIFF", compression="tiff_adobe_deflate", exif=exif),
            _encoded(rgb, "AVIF", speed=10, exif=exif),
        ]
    return made


def _encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def mutated(pictures: list[bytes], chance: random.Random) -> bytes:
    """One of the pictures after one to eight mutations, most of them near its beginning, where its structure is."""
    data = bytearray(chance.choice(pictures))
    for _ in range(chance.randint(1, 8)):
        at = min(len(data) - 1, int(len(data) * chance.random() ** 3)) if data else 0
        match chance.randrange(7):
            case 0 if data:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                value = chance.choice(_INTERESTING)
                data[at : at + len(value)] = value
            case 2:
                del data[at : at + chance.randint(1, 64)]
            case 3:
                data[at:at] = data[at : at + chance.randint(1, 64)]
            case 4:
                data[at:at] = chance.randbytes(chance.randint(1, 16))
            case 5:
                other = chance.choice(pictures)
                start = chance.randrange(len(other))
                data[at : at + 64] = other[start : start + chance.randint(1, 256)]
            case _ if chance.random() < 0.2:
                del data[at:]
    return bytes(data)


async def fuzz(seed: int, *, seconds: float, pictures_max: int | None = None) -> FuzzReport:
    """Send mutated pictures until the time is up or `pictures_max` have gone."""
    pool = DecodingPool(Settings(decode_processes=2, decode_timeout_s=20.0, max_image_pixels=4_000_000))
    chance, report, originals = random.Random(seed), FuzzReport(seed), seeds()
    operations: tuple[Callable[[bytes], Awaitable[object]], ...] = (
        lambda data: pool.square(data, SPEC),
        pool.inspect,
        pool.clean,
        lambda data: pool.thumbnail(data, 64),
    )

    async def one(data: bytes, operation: Callable[[bytes], Awaitable[object]]) -> None:
        try:
            await operation(data)
            report.outcomes["decoded"] += 1
        except InvalidImage as error:
            report.outcomes[error.code] += 1

    try:
        for data in originals:
            for operation in operations:
                await operation(data)
        ends, lost = time.monotonic() + seconds, pool.lost
        while time.monotonic() < ends and (pictures_max is None or report.pictures < pictures_max):
            batch = [(mutated(originals, chance), chance.choice(operations)) for _ in range(_AT_ONCE)]
            await asyncio.gather(*(one(data, operation) for data, operation in batch))
            report.pictures += len(batch)
            if pool.lost > lost:
                report.culprits += [data for data, _ in batch]
                lost = pool.lost
        report.rss_bytes = max(_rss_bytes(pid) for pid in pool.pids())
    finally:
        await asyncio.to_thread(pool.close)
    return report


def keep(culprits: list[bytes], folder: Path) -> list[Path]:
    """Write what did harm where somebody can look at it."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [folder / hashlib.sha256(data).hexdigest()[:16] for data in culprits]
    for path, data in zip(kept, culprits, strict=True):
        path.write_bytes(data)
    return kept


def _rss_bytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
