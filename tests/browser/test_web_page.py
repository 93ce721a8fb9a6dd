"""The web page in a real browser: a link with words shows real hits with their pictures, narrowed by its filter."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.integration.pictures import new_picture
from tests.integration.system import RunningSystem

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.timeout(600)]


def _chromium() -> str:
    """Path of Chromium. Continuous integration installs it; without it a person's run skips this page."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        assert os.environ.get("CI") != "true", "Chromium must be there in CI"
        pytest.skip("needs Chromium")
    return found


def _open(system: RunningSystem, folder: Path, **address: str) -> str:
    """The document after its scripts have run; a screenshot lies in `folder`/page.png."""
    return subprocess.run(
        [
            _chromium(),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-quic"),
            *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}/profile"),
            *("--window-size=1200,900", "--virtual-time-budget=15000", "--dump-dom"),
            f"--screenshot={folder / 'page.png'}",
            f"{system.base_url}/?{urlencode(address)}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def _hits(page: str) -> list[str]:
    """The elements of the hits."""
    return re.findall(r"<li>\s*<figure>.*?</figure>\s*</li>", page, re.S)


def _ids(page: str) -> set[str]:
    return {name for hit in _hits(page) for name in re.findall(r"/images/([^/]+)/content\?size=256", hit)}


def test_words_in_the_address_show_hits_with_pictures(
    system: RunningSystem, pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    # A picture that no other test on the same system uploads.
    caption, data = pictures[1]
    uploaded = system.upload(data, id="on-the-page", payload=json.dumps({"caption": caption}))
    assert uploaded.json()["status"] == "searchable", uploaded.text
    page = _open(system, tmp_path, q=caption)
    assert any(f'alt="{caption}"' in hit and "/images/on-the-page/content?size=256" in hit for hit in _hits(page)), page
    assert "4 of 4 shards" in page
    assert (tmp_path / "page.png").stat().st_size > 0


@pytest.fixture(scope="module")
def shelf(system: RunningSystem) -> None:
    """Three pictures on a shelf of their own."""
    for number, year in enumerate((2023, 2024, "2025")):
        payload = {"caption": f"zyzzyva {number}", "shelf": "the page, narrowed", "year": year, "tags": ["new", "seen"]}
        uploaded = system.upload(new_picture(760 + number), id=f"shelf-{number}", payload=json.dumps(payload))
        assert uploaded.is_success, uploaded.text


@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ('shelf="the page, narrowed", year != 2025, tags=seen', {"shelf-0", "shelf-1"}),
        ('shelf = "the page, narrowed", year >= 2024', {"shelf-1"}),
        ('{"must": [{"key": "shelf", "match": {"value": "the page, narrowed"}}]}', {"shelf-0", "shelf-1", "shelf-2"}),
    ],
)
def test_the_filter_box_narrows_the_hits(
    system: RunningSystem, tmp_path: Path, condition: str, expected: set[str]
) -> None:
    assert _ids(_open(system, tmp_path, q="a picture", filter=condition)) == expected


@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("tags = seen, year ! 2024", "The filter cannot be read at “year ! 2024”. Write field = value"),
        ("tags > many", "“tags &gt; many” compares with neither a number nor a date-time"),
        ('{"must": [', "The filter is no JSON"),
        ('{"most": []}', "filter: has no 'most'"),
    ],
)
def test_a_filter_that_cannot_be_says_why(system: RunningSystem, tmp_path: Path, condition: str, said: str) -> None:
    page = _open(system, tmp_path, q="a picture", filter=condition)
    notice = re.search(r'<p id="notice"[^>]*>(.*?)</p>', page, re.S)
    assert notice is not None
    assert said in notice[1]
    assert 'class="problem"' in notice[0]
    assert _ids(page) == set()


@pytest.mark.usefixtures("shelf")
def test_the_hybrid_switch_asks_for_words_too(system: RunningSystem, tmp_path: Path) -> None:
    """A word that no encoder knows stands in one caption alone; the fused scores of the default are below 1/60."""
    page = _open(system, tmp_path, q="zyzzyva 1", hybrid="1")
    assert "shelf-1" in _ids(page)
    scores = [float(score) for score in re.findall(r'class="score">([-0-9.]+)<', page)]
    assert scores
    assert max(scores) <= 0.017
