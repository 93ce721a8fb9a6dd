"""The documentation names what exists: settings, errors, targets, files, commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from contract import errors
from contract.settings import Settings
from contract.telemetry import METRICS
from serving.cli import app

ROOT = Path(__file__).parent.parent
# Commands of the command line that have commands of their own.
_GROUPS = {group.name for group in app.registered_groups}
MARKDOWN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "infra").rglob("*.md")])


def _all_errors() -> list[type[errors.RiverlensError]]:
    found, queue = [], [errors.RiverlensError]
    while queue:
        found.append(queue[0])
        queue.extend(queue.pop(0).__subclasses__())
    return found


def test_every_setting_has_a_docstring_and_a_row() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    missing = [
        name
        for name, field in Settings.model_fields.items()
        if not field.description or f"`RIVERLENS_{name.upper()}`" not in page
    ]
    assert missing == []


def test_no_setting_is_documented_that_does_not_exist() -> None:
    known = {f"RIVERLENS_{name.upper()}" for name in Settings.model_fields} | {"RIVERLENS_CONFIG"}
    named = {match for page in MARKDOWN for match in re.findall(r"RIVERLENS_[A-Z0-9_]*[A-Z0-9]", page.read_text())}
    assert named - known == set()


def test_every_error_code_is_unique_and_has_a_row() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    codes = [error.code for error in _all_errors()]
    assert len(codes) == len(set(codes))
    assert [code for code in codes if f"`{code}`" not in page] == []


def test_every_metric_has_its_row_and_no_other_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = {f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help} |" for m in METRICS}
    assert [row for row in sorted(rows) if row not in page] == []
    written = set(re.findall(r"^\| `([a-z0-9_]+)` \| (?:counter|gauge|histogram) \|", page, re.M))
    assert written == {metric.name for metric in METRICS}


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        target
        for page in MARKDOWN
        for target in re.findall(r"`make ([a-z0-9-]+)", page.read_text())
        + re.findall(r"^make ([a-z0-9-]+)", page.read_text(), re.M)
    }
    assert named - targets == set()


def test_relative_links_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in MARKDOWN
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert broken == []


def test_every_command_line_in_the_docs_parses() -> None:
    """`riverlens …` lines of fenced blocks name commands and options that the command line has."""
    runner = CliRunner()
    help_texts: dict[str, str] = {}
    for page in MARKDOWN:
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), re.S):
            for line in re.findall(r"^(?:\$ )?(riverlens .*)$", block, re.M):
                words = shlex.split(line.split(" | ")[0], comments=True)
                group = words[1] in _GROUPS and len(words) > 2
                command = " ".join(words[1:3] if group else words[1:2])
                if command not in help_texts:
                    asked = [*command.split(), "--help"]
                    result = runner.invoke(app, asked, env={"COLUMNS": "200", "NO_COLOR": "1"})
                    assert result.exit_code == 0, f"{page.name}: {line}"
                    help_texts[command] = result.output
                for option in (word.split("=")[0] for word in words[2:] if word.startswith("--")):
                    assert option in help_texts[command], f"{page.name}: {line}: {option}"


def test_every_python_example_in_the_docs_type_checks(tmp_path: Path) -> None:
    """All examples of a page are one program; the running system executes them in an integration test."""
    pages = {page.stem: re.findall(r"```python\n(.*?)```", page.read_text(), re.S) for page in MARKDOWN}
    files = []
    for name, blocks in pages.items():
        if blocks:
            files.append(tmp_path / f"example_{name.replace('-', '_')}.py")
            files[-1].write_text("\n".join(blocks))
    assert files
    tool = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(ROOT / ".mypy_cache")]
    result = subprocess.run([*tool, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_readme_opens_with_the_two_commands() -> None:
    head = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    assert "make demo" in head
    assert "make test" in head
