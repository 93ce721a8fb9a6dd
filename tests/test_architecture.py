"""The layout and the import rules of docs/architecture.md hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("contract", "streams", "actors", "serving", "training", "evaluation", "benchmarks", "infra")
PIPELINE = "Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits."


def _sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_import_rules_hold() -> None:
    tool = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([str(tool)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_remote_actors_stand_only_at_the_top_of_actors() -> None:
    offenders = []
    for path in _sources():
        tree = ast.parse(path.read_text())
        uses_remote = any(
            isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and any("ray.remote" in ast.unparse(decorator) for decorator in node.decorator_list)
            for node in ast.walk(tree)
        )
        if uses_remote and path.parent != ROOT / "actors":
            offenders.append(str(path.relative_to(ROOT)))
    assert offenders == []


def test_every_package_docstring_shows_the_pipeline() -> None:
    missing = []
    for package in PACKAGES:
        for init in (ROOT / package).rglob("__init__.py"):
            docstring = ast.get_docstring(ast.parse(init.read_text())) or ""
            if PIPELINE not in docstring or "You are here:" not in docstring:
                missing.append(str(init.relative_to(ROOT)))
    assert missing == []


def test_no_room_without_a_name_of_its_own() -> None:
    nameless = {"utils", "util", "common", "helpers", "misc"}
    assert [str(p.relative_to(ROOT)) for p in _sources() if nameless & {p.stem, p.parent.name}] == []


def test_light_modules_load_no_heavy_library() -> None:
    """What streams and serving import at start must not pull torch, faiss or rocksdict in."""
    code = (
        "import sys; import actors.handles, actors.log.producer, actors.objects, actors.embedding.preprocessing; "
        "print([m for m in ('torch', 'faiss', 'rocksdict', 'open_clip', 'onnxruntime') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420, "split it: it is probably two things"
