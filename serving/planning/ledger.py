"""Every figure of a plan with the way it came about: which formula, which measured constants, which assumptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from msgspec import Struct

from serving.planning.constants import Constants
from serving.planning.quantities import show
from serving.planning.workload import Assumption


class Figure(Struct, frozen=True):
    """One line of a plan. `how` is the formula; `measured` and `assumed` are what went into it, with their origins."""

    group: str
    name: str
    value: float
    unit: str
    how: str
    measured: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The value for a person."""
        return show(self.value, self.unit)


class Ledger:
    """Collects figures in order, and hands out constants and assumptions while noting who took them."""

    def __init__(self, constants: Constants, assumptions: Mapping[str, Assumption]) -> None:
        self._constants = constants
        self._assumptions = assumptions
        self.figures: list[Figure] = []
        self._measured: dict[str, None] = {}
        self._assumed: dict[str, None] = {}
        self._group = ""

    @contextmanager
    def group(self, name: str) -> Iterator[None]:
        """Figures added inside stand under this heading."""
        self._group = name
        yield
        self._group = ""

    def measured(self, name: str) -> float:
        """A measured constant."""
        constant = self._constants.measured[name]
        self._measured[f"{name} = {show(constant.value, constant.unit)} ({constant.source})"] = None
        return constant.value

    def assumed(self, name: str) -> float:
        """An assumption."""
        assumption = self._assumptions[name]
        self._assumed[f"{name} = {show(assumption.value, assumption.unit)}: {assumption.why}"] = None
        return assumption.value

    def add(self, name: str, value: float, unit: str, how: str) -> float:
        """Note a figure with all that was handed out since the last one, and return its value."""
        self.figures.append(
            Figure(self._group, name, float(value), unit, how, tuple(self._measured), tuple(self._assumed))
        )
        self._measured, self._assumed = {}, {}
        return value
