"""Which jars the local Kafka runs from, and that nothing else gets in."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from streams.kafka_jars import KAFKA_VERSION, RESOURCES, mismatch

POM = ElementTree.parse(RESOURCES / "pom.xml")
SPACE = {"m": "http://maven.apache.org/POM/4.0.0"}


@pytest.fixture
def jars(tmp_path: Path) -> dict[str, str]:
    contents = {"a.jar": b"first", "b.jar": b"second"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def test_exactly_the_listed_files_fit(tmp_path: Path, jars: dict[str, str]) -> None:
    assert mismatch(tmp_path, jars) is None


def test_a_changed_byte_is_found(tmp_path: Path, jars: dict[str, str]) -> None:
    (tmp_path / "b.jar").write_bytes(b"Second")
    assert "b.jar has sha256" in (mismatch(tmp_path, jars) or "")


def test_a_missing_and_an_additional_file_are_found(tmp_path: Path, jars: dict[str, str]) -> None:
    """Kafka's class path is the whole folder, so a stranger in it would run."""
    (tmp_path / "stranger.jar").write_bytes(b"")
    assert "unexpected: ['stranger.jar']" in (mismatch(tmp_path, jars) or "")
    (tmp_path / "stranger.jar").unlink()
    (tmp_path / "a.jar").unlink()
    assert "missing: ['a.jar']" in (mismatch(tmp_path, jars) or "")
    assert mismatch(tmp_path / "nowhere", jars) is not None


def test_every_direct_dependency_is_pinned_and_listed() -> None:
    listed = (RESOURCES / "jars.sha256").read_text()
    for dependency in POM.findall(".//m:dependency", SPACE):
        artifact, version = (dependency.findtext(f"m:{tag}", namespaces=SPACE) for tag in ("artifactId", "version"))
        assert f"{artifact}-{version}.jar" in listed
    assert re.search(rf"  kafka_2\.13-{re.escape(KAFKA_VERSION)}\.jar$", listed, re.M)
    assert POM.findtext("m:version", namespaces=SPACE) == KAFKA_VERSION


def test_the_binding_of_the_log_fits_the_interface() -> None:
    """slf4j 1.7 ignores a binding for 2.x without a word, and Kafka would log nothing."""
    listed = (RESOURCES / "jars.sha256").read_text()
    assert "slf4j-api-1.7." in listed
    assert "log4j-slf4j-impl-" in listed
    assert "log4j-slf4j2-impl" not in listed
