"""Commands of the documentation are run as they stand there, against the running system."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.integration.pictures import new_picture
from tests.integration.system import RunningSystem

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
# These name a key and a dead letter that nobody has here; test_access.py and test_dead_letters.py run them on some.
_ON_SOMETHING = (
    "riverlens keys revoke",
    "riverlens dead-letter show",
    "riverlens dead-letter redrive",
    "riverlens dead-letter drop",
)
# These start, install or measure a whole system; `make demo` and `make test` are run by whoever clones.
_ELSEWHERE = ("make ", "riverlens up", "riverlens demo", "python -m", *_ON_SOMETHING)


def python_of(page: str) -> str:
    """The Python examples of a page as one program."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S))


def _commands(page: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(_ELSEWHERE)]


@pytest.fixture
def workplace(tmp_path: Path, system: RunningSystem) -> Path:
    """A folder with every file and image that the documentation names."""
    for number, name in enumerate(("bird.png", "query.png", "street.jpg", "home/Pictures/a.png", "data/deep/b.jpg")):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(new_picture(700 + number))
    (tmp_path / "pictures.csv").write_text("file,caption\nbird.png,a bird\n")
    parquet.write_table(pa.table({"path": ["query.png"], "caption": ["a query"]}), tmp_path / "pictures.parquet")
    vector = np.ones(system.collection()["dimension"], np.float32)
    np.save(tmp_path / "query.npy", vector)
    vector.astype("<f4").tofile(tmp_path / "query.f32")
    for number, image_id in enumerate(("my-image", "acorn", "cactus")):
        assert system.upload(new_picture(720 + number), id=image_id).is_success
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/api.md", "docs/cli.md", "docs/reranking.md", "docs/metrics.md"])
def test_the_commands_of_a_page_work_as_they_stand(page: str, system: RunningSystem, workplace: Path) -> None:
    commands = _commands(page)
    assert commands
    environment = {
        **system.environment,
        "HOME": str(workplace / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for command in commands:
        here = command.replace("http://127.0.0.1:8000", system.base_url).replace("/data/", f"{workplace}/data/")
        here = re.sub(r"^curl ", "curl -sS --fail-with-body ", here)
        done = subprocess.run(
            here, shell=True, cwd=workplace, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    system.http.delete("/v1/collections/birds")


@pytest.mark.parametrize(
    ("page", "printed"),
    [("README.md", ["Hit(id='bird'"]), ("docs/client.md", ["searchable, 0 failed", "there is no image 'nobody'"])],
)
def test_the_python_of_a_page_works_as_it_stands(
    page: str, printed: list[str], system: RunningSystem, workplace: Path
) -> None:
    # A collection of its own: among the pictures of other tests its own would not be near the top.
    system.http.put("/v1/collections/page", json={}).raise_for_status()
    program = python_of(page).replace("http://127.0.0.1:8000", system.base_url).replace('"images"', '"page"')
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=workplace,
        env={**system.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert [text for text in printed if text not in done.stdout] == []
    system.http.delete("/v1/collections/page").raise_for_status()
