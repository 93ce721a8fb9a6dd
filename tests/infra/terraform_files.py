"""The files of infra/terraform as blocks, and what is wrong with them: pure functions over parsed HCL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import hcl2

TERRAFORM = Path(__file__).parent.parent.parent / "infra" / "terraform"
# What every resource may have, whatever its type.
_META = {"count", "for_each", "depends_on", "provider", "lifecycle", "connection", "provisioner", "timeouts"}
_MARK = "__is_block__"
_COMMENTS = {"__comments__", "__inline_comments__"}
_LABELS = {"resource": 2, "data": 2, "ephemeral": 2, "variable": 1, "output": 1, "module": 1, "provider": 1}


@dataclass(frozen=True)
class Block:
    """A block at the top of a file: `resource "aws_vpc" "this" {…}` has the kind `resource` and two labels."""

    kind: str
    labels: tuple[str, ...]
    body: dict[str, Any]

    @property
    def address(self) -> str:
        """How others refer to it."""
        match self.kind:
            case "resource":
                return ".".join(self.labels)
            case "variable":
                return f"var.{self.labels[0]}"
            case _:
                return ".".join((self.kind, *self.labels))


@dataclass
class Folder:
    """All files of one module."""

    path: Path
    blocks: list[Block] = field(default_factory=list)

    def of(self, kind: str) -> list[Block]:
        """The blocks of a kind."""
        return [block for block in self.blocks if block.kind == kind]

    @property
    def local_names(self) -> set[str]:
        """Names under `locals`."""
        return {name for block in self.of("locals") for name in block.body if name != _MARK}


def parse(text: str) -> list[Block]:
    """The blocks of one file. Raises what hcl2 raises for a text that is no HCL."""
    blocks = []
    for kind, entries in hcl2.loads(text).items():
        if kind in _COMMENTS:
            continue
        for entry in entries:
            labels, body = [], entry
            for _ in range(_LABELS.get(kind, 0)):
                ((label, body),) = ((key, value) for key, value in body.items() if key != _MARK)
                labels.append(label.strip('"'))
            blocks.append(Block(kind, tuple(labels), _without_comments(body)))
    return blocks


def _without_comments(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_comments(item) for key, item in value.items() if key not in _COMMENTS}
    return [_without_comments(item) for item in value] if isinstance(value, list) else value


@lru_cache
def load_folder(path: Path) -> Folder:
    """A module, parsed."""
    return Folder(path, [block for file in sorted(path.glob("*.tf")) for block in parse(file.read_text())])


def texts(value: Any) -> Iterator[str]:
    """Every string within a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def plain(value: Any) -> list[str]:
    """Literal strings of a list, or of an expression over lists, without their quotes."""
    return re.findall(r'"([^"]*)"', " ".join(texts(value)))


_REFERENCE = re.compile(
    r"(?<![\w.\"-])((?:var|local|module|data|ephemeral|aws|helm|kubernetes)(?:_[a-z0-9_]+)?(?:\.[a-z_][a-z0-9_]*)+)"
)


def references(block: Block) -> set[str]:
    """Addresses with attributes to which a block's expressions refer, such as `aws_vpc.this.id`, `var.name`."""
    found = set()
    for text in texts(block.body):
        for expression in [text] if text.startswith("${") else re.findall(r"\$\{[^}]*\}", text):
            bare = _QUOTED.sub(_interpolated, expression)
            found |= set(_REFERENCE.findall(bare.replace("[*]", "")))
    return found


_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def _interpolated(quoted: re.Match[str]) -> str:
    """Words inside quotes are no references; what is interpolated inside them is."""
    return " " + " ".join(re.findall(r"\$\{([^}]*)", quoted[1])) + " "


def unresolved(folder: Folder, schemas: dict[str, Any]) -> list[str]:
    """References that lead nowhere: to no block, local or output, or to an attribute that its type does not have."""
    here = {block.address: block for block in folder.blocks}
    wrong = []
    for block in folder.blocks:
        iterators = set(block.body.get("dynamic", []) and [key.strip('"') for d in block.body["dynamic"] for key in d])
        for reference in references(block):
            parts = reference.split(".")
            if parts[0] in iterators:
                continue
            match parts[0]:
                case "local":
                    known = parts[1] in folder.local_names
                case "var":
                    known = f"var.{parts[1]}" in here
                case "module":
                    called = here.get(f"module.{parts[1]}")
                    known = called is not None and (len(parts) < 3 or parts[2] in outputs_of(folder, called))
                case "data" | "ephemeral":
                    known = ".".join(parts[:3]) in here and _has(schemas, f"{parts[0]}.{parts[1]}", parts[3:])
                case _:
                    known = ".".join(parts[:2]) in here and _has(schemas, parts[0], parts[2:])
            if not known:
                wrong.append(f"{folder.path.name}: {block.address} refers to {reference}")
    return wrong


def _has(schemas: dict[str, Any], kind: str, attributes: list[str]) -> bool:
    schema = schemas.get(kind)
    return (
        schema is None or not attributes or attributes[0] in schema["exports"] or attributes[0] in schema["arguments"]
    )


def source_of(folder: Folder, call: Block) -> Folder:
    """The module that a `module` block calls."""
    return load_folder((folder.path / call.body["source"].strip('"')).resolve())


def outputs_of(folder: Folder, call: Block) -> set[str]:
    """Names of the outputs of a called module."""
    return {block.labels[0] for block in source_of(folder, call).of("output")}


def wrong_calls(folder: Folder) -> list[str]:
    """Arguments of calls that the module does not declare, and required ones that are missing."""
    wrong = []
    for call in folder.of("module"):
        variables = {block.labels[0]: block.body for block in source_of(folder, call).of("variable")}
        given = set(call.body) - {_MARK, "source", "version", "providers", *_META}
        required = {name for name, body in variables.items() if "default" not in body}
        wrong += [
            f"{folder.path.name}: {call.address} has no variable {name}" for name in sorted(given - set(variables))
        ]
        wrong += [f"{folder.path.name}: {call.address} lacks {name}" for name in sorted(required - given)]
    return wrong


def against_schema(block: Block, schema: dict[str, Any]) -> list[str]:
    """What the provider would refuse: names it does not know, arguments and blocks that are missing."""
    return [f"{block.address}: {fault}" for fault in _faults(block.body, schema["arguments"], "")]


def _faults(body: dict[str, Any], arguments: dict[str, Any], where: str) -> Iterator[str]:
    dynamic: dict[str, Any] = {}
    for one in body.get("dynamic", []):
        dynamic |= {key.strip('"'): value["content"] for key, value in one.items() if key != _MARK}
    given = {**{key: value for key, value in body.items() if key not in {_MARK, "dynamic"}}, **dynamic}
    for name, value in given.items():
        schema = arguments.get(name)
        if schema is None:
            if where or name not in _META:
                yield f"{where}{name} does not exist"
            continue
        is_block = isinstance(value, list) and bool(value) and isinstance(value[0], dict) and _MARK in value[0]
        if is_block != ("block" in schema):
            yield f"{where}{name} is {'an argument' if is_block else 'a block'}"
        elif is_block:
            if len(value) > 1 and not schema["many"]:
                yield f"{where}{name} can stand once"
            for one in value:
                yield from _faults(one, schema["block"], f"{where}{name}.")
        else:
            yield from _wrong_type(value, schema.get("type", ""), f"{where}{name}")
    for name, schema in arguments.items():
        if schema["required"] and name not in given:
            yield f"{where}{name} is missing"


def _wrong_type(value: Any, kind: str, name: str) -> Iterator[str]:
    """Literals of another type; an expression may be anything."""
    if isinstance(value, str) and value.startswith("${"):
        return
    of = {"string": str, "number": int | float, "bool": bool, "string[]": list, "map": dict}.get(kind)
    converted = kind == "string" and isinstance(value, bool | int | float)
    if of is not None and not isinstance(value, of) and not converted:
        yield f"{name} is {json.dumps(value)}, not a {kind}"
