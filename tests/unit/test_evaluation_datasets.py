"""Reading of the data sets, on small trees laid out like the packages."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from contract.settings import Settings
from evaluation import datasets
from evaluation.packages import DatasetUnavailable, debian_package, npm_package


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache")


def _png(path: Path, title: str = "", size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    if title:
        info.add_text("Title", title)
    Image.new("RGB", size, (9, 9, 9)).save(path, pnginfo=info)


def test_openclipart_keeps_pictures_with_titles_of_their_own(settings: Settings) -> None:
    root = settings.cache_path / "datasets/debian-openclipart-png/usr/share/openclipart/png"
    _png(root / "animals/birds/owl.png", "An owl &amp; friend")
    _png(root / "animals/none.png")
    _png(root / "computer/untitled.png", "Untitled 3")
    for number in range(4):
        _png(root / f"shapes/star{number}.png", "gramastar")
    _png(root / "food/huge.png", "milk", size=(12_000, 1_001))
    (root / "animals/again.png").symlink_to(root / "animals/birds/owl.png")
    (root / "animals/broken.png").write_bytes(b"no picture")
    pictures = datasets.openclipart(settings)
    assert [(p.identity, p.caption, p.sub_category) for p in pictures] == [
        ("animals/birds/owl.png", "An owl & friend", "animals/birds")
    ]
    assert pictures[0].read() == (root / "animals/birds/owl.png").read_bytes()


def test_tuxpaint_takes_english_captions_and_each_stamp_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = settings.cache_path / "datasets/debian-tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    for name, caption in (("animals/cartoon/cat", "A cat."), ("symbols/a", "The letter A."), ("food/ice", "Ice.")):
        _png(root / f"{name}.png")
        (root / f"{name}.txt").write_text(f"{caption}\nde.utf8=anders\n", encoding="utf-8")
    (root / "animals/cartoon/cat.svg").write_text("<svg/>")
    (root / "animals/owl.svg").write_text("<svg/>")
    (root / "animals/owl.txt").write_text("An owl.\n")
    _png(root / "food/silent.png")
    monkeypatch.setattr("shutil.which", lambda _: None)
    without = datasets.tuxpaint(settings)
    assert [(p.identity, p.caption, p.category, p.sub_category) for p in without] == [
        ("animals/cartoon/cat.png", "A cat.", "animals", "animals"),
        ("food/ice.png", "Ice.", "food", "food"),
    ]
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/true")
    assert [p.identity for p in datasets.tuxpaint(settings)][2:] == ["animals/owl.svg"]


def test_drawn_stamps_are_rendered_once_and_failures_are_clear(settings: Settings, tmp_path: Path) -> None:
    renderer = tmp_path / "renderer"
    renderer.write_text('#!/bin/sh\necho "$@"\n')
    renderer.chmod(0o755)
    first = datasets._render(str(renderer), Path("owl.svg"), tmp_path / "out/owl.png")
    assert b"--width 256 --height 256 owl.svg" in first
    renderer.write_text("#!/bin/sh\necho no drawing >&2\nexit 1\n")
    assert datasets._render(str(renderer), Path("owl.svg"), tmp_path / "out/owl.png") == first
    with pytest.raises(DatasetUnavailable, match="no drawing"):
        datasets._render(str(renderer), Path("owl.svg"), tmp_path / "out/other.png")


def test_sweethome_reads_names_and_icons_of_a_catalogue(settings: Settings) -> None:
    folder = settings.cache_path / "datasets/debian-sweethome3d-furniture/usr/share/sweethome3d/furniture"
    folder.mkdir(parents=True)
    properties = "name#1=Oak chair\nicon#1=/a/chair.png\ncategory#1=Living room\nname#2=No icon\nicon#2=/gone.png\n"
    with zipfile.ZipFile(folder / "Some.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", properties)
        archive.writestr("a/chair.png", b"bytes of the chair")
    (picture,) = datasets.sweethome(settings)
    assert (picture.identity, picture.caption, picture.category) == ("Some.sh3f#1", "Oak chair", "Living room")
    assert picture.read() == b"bytes of the chair"


def test_emoji_leaves_flags_out(settings: Settings) -> None:
    root = settings.cache_path / "datasets/npm-emoji-datasource-google-16.0.0/package"
    _png(root / "img/google/64/1f600.png")
    _png(root / "img/google/64/flag.png")
    entry = {"image": "1f600.png", "name": "GRINNING-FACE", "short_name": "grin", "has_img_google": True}
    entries = [
        {**entry, "category": "Smileys", "subcategory": "face"},
        {**entry, "image": "flag.png", "category": "Flags", "subcategory": "flag"},
        {**entry, "image": "missing.png", "category": "Smileys", "subcategory": "face"},
    ]
    (root / "emoji.json").write_text(json.dumps(entries))
    assert [(p.identity, p.caption) for p in datasets.emoji(settings)] == [("1f600.png", "grinning face")]


def test_machines_without_the_tools_get_a_clear_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DatasetUnavailable, match="apt-get"):
        debian_package(settings, "no-such-package")
    with pytest.raises(DatasetUnavailable, match="npm"):
        npm_package(settings, "no-such-package", "1.0.0")
    assert [path.name for path in (settings.cache_path / "datasets").iterdir()] == [".lock"]
