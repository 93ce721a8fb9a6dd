"""Real pictures with captions and categories, to train the head on and to measure encoders with."""

from __future__ import annotations

import csv
import hashlib
import html
import json
import re
import shutil
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from PIL import Image

from contract.settings import Settings
from evaluation.packages import DatasetUnavailable, debian_package, npm_package

TUXPAINT: Final = "tuxpaint-stamps-default"
OPENCLIPART: Final = "openclipart-png"
SWEETHOME: Final = "sweethome3d-furniture"
EMOJI: Final = ("emoji-datasource-google", "16.0.0")

_RENDERED_SIDE: Final = 256
_LARGEST_PIXELS: Final = 12_000_000
_MOST_PICTURES_OF_ONE_TITLE: Final = 3
_SERIES_TITLE = re.compile(r"collection|icon theme|untitled", re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """A picture of a data set.

    `identity` is unique in its data set; `category` and `sub_category` are its folders; `read` gives
    the bytes of the file.
    """

    identity: str
    caption: str
    category: str
    sub_category: str
    read: Callable[[], bytes] = field(repr=False, compare=False)


def tuxpaint(settings: Settings) -> list[Picture]:
    """Stamps of Tux Paint with their English captions (GPL-2); only ever evaluated on.

    Drawn stamps (SVG) are rendered with `rsvg-convert`; where that is missing they are left out, which
    leaves the raster stamps. A stamp that comes in both forms counts once. The alphabet (`symbols`) is
    left out, since its captions name no thing.
    """
    root = debian_package(settings, TUXPAINT) / "usr/share/tuxpaint/stamps"
    renderer = shutil.which("rsvg-convert")
    rendered = settings.cache_path / "datasets" / f"{TUXPAINT}-rendered-{_RENDERED_SIDE}"
    pictures = []
    stamps: set[Path] = set()
    for file in [*sorted(root.rglob("*.png")), *(sorted(root.rglob("*.svg")) if renderer else [])]:
        name, text = file.relative_to(root), file.with_suffix(".txt")
        if name.parts[0] == "symbols" or not text.exists() or name.with_suffix("") in stamps:
            continue
        stamps.add(name.with_suffix(""))
        caption = text.read_text(encoding="utf-8").partition("\n")[0].strip()
        kinds = [folder for folder in name.parts[:-1] if folder != "cartoon"]
        read = file.read_bytes
        if renderer and file.suffix == ".svg":
            read = partial(_render, renderer, file, rendered / name.with_suffix(".png"))
        pictures.append(Picture(str(name), caption, name.parts[0], "/".join(kinds[:3]), read))
    return pictures


def openclipart(settings: Settings) -> list[Picture]:
    """Open Clip Art with usable titles (public domain).

    Titles that more than three pictures share name a series, not a picture, and are left out with
    their pictures; so are symbolic links (duplicates) and pictures above 12 megapixels.
    """
    root = debian_package(settings, OPENCLIPART) / "usr/share/openclipart/png"
    titled: list[tuple[Path, str]] = []
    for file in sorted(root.rglob("*.png")):
        if not file.is_symlink():
            title = _png_title(file)
            if title:
                titled.append((file, title))
    counts = Counter(title.lower() for _, title in titled)
    return [
        Picture(str(name), title, name.parts[0], "/".join(name.parts[:-1][:2]), file.read_bytes)
        for file, title in titled
        if counts[title.lower()] <= _MOST_PICTURES_OF_ONE_TITLE and not _SERIES_TITLE.search(title)
        for name in [file.relative_to(root)]
    ]


def sweethome(settings: Settings) -> list[Picture]:
    """Rendered furniture of Sweet Home 3D with its names (public domain and CC-BY 3.0)."""
    root = debian_package(settings, SWEETHOME) / "usr/share/sweethome3d/furniture"
    pictures = []
    for catalogue in sorted(root.glob("*.sh3f")):
        with zipfile.ZipFile(catalogue) as archive:
            members = set(archive.namelist())
            lines = archive.read("PluginFurnitureCatalog.properties").decode("latin-1").splitlines()
        pieces: dict[int, dict[str, str]] = {}
        for line in lines:
            if match := re.match(r"(\w+)#(\d+)\s*=\s*(.*)", line):
                pieces.setdefault(int(match[2]), {})[match[1]] = match[3].strip()
        for number, piece in sorted(pieces.items()):
            icon = piece.get("icon", "").lstrip("/")
            if icon in members and piece.get("name"):
                category = piece.get("category", "")
                read = partial(_read_member, catalogue, icon)
                pictures.append(Picture(f"{catalogue.name}#{number}", piece["name"], category, category, read))
    return pictures


def emoji(settings: Settings) -> list[Picture]:
    """Noto emoji with their names (Apache-2.0), without flags."""
    root = npm_package(settings, *EMOJI) / "package"
    pictures = []
    for entry in json.loads((root / "emoji.json").read_text(encoding="utf-8")):
        file = root / "img/google/64" / entry["image"]
        if entry["category"] in {"Flags", "Component"} or not entry["has_img_google"] or not file.exists():
            continue
        name = (entry["name"] or entry["short_name"]).lower().replace("-", " ")
        pictures.append(Picture(entry["image"], name, entry["category"], entry["subcategory"], file.read_bytes))
    return pictures


def listed(table: Path, concept_column: str = "concept") -> list[Picture]:
    """Pictures of a CSV file with the columns `file` (relative to it), `caption` and `concept`.

    The concept, or what stands in another column for it, becomes both category and sub-category.

    Raises:
        DatasetUnavailable: the table or a picture of it is not there, or a column or a value is missing.
    """
    columns = ("file", "caption", concept_column)
    try:
        with table.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except OSError as error:
        raise DatasetUnavailable(f"{table} cannot be read: {error.strerror}") from error
    pictures = []
    for number, row in enumerate(rows, start=2):
        name, caption, concept = ((row.get(column) or "").strip() for column in columns)
        if not (name and caption and concept):
            raise DatasetUnavailable(f"{table}, line {number}: {', '.join(columns)} must all be given")
        file = table.parent / name
        if not file.is_file():
            raise DatasetUnavailable(f"{table}, line {number}: there is no file {file}")
        pictures.append(Picture(name, caption, concept, concept, file.read_bytes))
    return pictures


def content_sha256(pictures: Iterable[Picture]) -> str:
    """Hash of a data set: identities, captions, categories and bytes, in order."""
    digest = hashlib.sha256()
    for picture in pictures:
        labels = json.dumps([picture.identity, picture.caption, picture.category, picture.sub_category])
        digest.update(labels.encode())
        digest.update(hashlib.sha256(picture.read()).digest())
    return digest.hexdigest()


def _png_title(file: Path) -> str:
    """Title in a PNG's text chunks, or "" where there is none or the picture is too large to use."""
    try:
        with Image.open(file) as image:
            if image.width * image.height > _LARGEST_PIXELS:
                return ""
            return html.unescape(str(image.info.get("Title", ""))).strip()
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return ""


def _read_member(archive: Path, member: str) -> bytes:
    with zipfile.ZipFile(archive) as opened:
        return opened.read(member)


def _render(renderer: str, drawing: Path, target: Path) -> bytes:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        side = str(_RENDERED_SIDE)
        command = [renderer, "--keep-aspect-ratio", "--width", side, "--height", side, str(drawing)]
        result = subprocess.run(command, capture_output=True, check=False, timeout=60)  # noqa: S603
        if result.returncode != 0:
            raise DatasetUnavailable(f"{drawing.name} cannot be rendered: {result.stderr.decode(errors='replace')}")
        target.write_bytes(result.stdout)
    return target.read_bytes()
