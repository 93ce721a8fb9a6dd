"""The web page in a real browser: a link with words shows real hits with their pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.integration.system import RunningSystem

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.timeout(600)]


def _chromium() -> str:
    """Path of Chromium. Continuous integration installs it; without it a person's run skips this page."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        assert os.environ.get("CI") != "true", "Chromium must be there in CI"
        pytest.skip("needs Chromium")
    return found


def test_words_in_the_address_show_hits_with_pictures(
    system: RunningSystem, pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    # A picture that no other test on the same system uploads.
    caption, data = pictures[1]
    uploaded = system.upload(data, id="on-the-page", payload=json.dumps({"caption": caption}))
    assert uploaded.json()["status"] == "searchable", uploaded.text
    screenshot = tmp_path / "page.png"
    page = subprocess.run(
        [
            _chromium(),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-quic"),
            *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}/profile"),
            *("--window-size=1200,900", "--virtual-time-budget=15000", "--dump-dom", f"--screenshot={screenshot}"),
            f"{system.base_url}/?{urlencode({'q': caption})}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    hits = re.findall(r"<li>\s*<figure>.*?</figure>\s*</li>", page, re.S)
    assert any(f'alt="{caption}"' in hit and "/images/on-the-page/content?size=256" in hit for hit in hits), page
    assert "4 of 4 shards" in page
    assert screenshot.stat().st_size > 0
