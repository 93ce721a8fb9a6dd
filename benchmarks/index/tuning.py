"""The smallest effort that reaches a recall. Needs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

# Efforts this close together are as good as equal: a fiftieth costs a fiftieth.
_RESOLUTION = 0.02


class Tuned(NamedTuple):
    """An effort, the recall measured there, and whether that is the one that was asked for."""

    effort: int
    recall: float
    reached: bool


def smallest_effort(measure: Callable[[int], float], target: float, lowest: int, highest: int) -> Tuned:
    """Find the smallest effort whose recall is at least `target`, by doubling and then bisection.

    Recall is taken to grow with the effort; where it does not quite, the answer still reaches the
    target. Efforts within 2 % of each other are not told apart.

    Args:
        measure: recall at an effort.
        target: the recall that is wanted.
        lowest: the smallest effort that makes sense.
        highest: the largest one; its recall is returned, with `reached` false, if it is below the target.
    """
    below, effort = lowest - 1, lowest
    while (found := measure(effort)) < target:
        if effort >= highest:
            return Tuned(effort, found, False)
        below, effort = effort, min(2 * effort, highest)
    best = Tuned(effort, found, True)
    while best.effort - below > max(1, int(_RESOLUTION * best.effort)):
        middle = (below + best.effort) // 2
        found = measure(middle)
        if found >= target:
            best = Tuned(middle, found, True)
        else:
            below = middle
    return best
