"""What is done to a running system: applied, held, healed. The system must then become whole by itself."""

from __future__ import annotations

import os
import random
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable

from tests.chaos.target import Target

# What the Kafka client of Faust says while it cannot reach its broker; it tries again ten times a second.
BROKER_AWAY = (
    r'"event": "(Unable connect to node|Unable to update metadata|Group Coordinator Request failed)',
    r'"event": "Failed fetch (messages|offsets) from',
    r'"event": "Heartbeat session expired - marking coordinator dead',
    r'"event": "Error sending (Heartbeat|OffsetCommit|OffsetFetch|JoinGroup|SyncGroup)Request',
    r'"event": "Heartbeat send request failed',
    r'"event": "Unable to request metadata',
)
# A worker that finds out that it stood still ends; its Kafka client has lost its coordinator by then.
STOOD_STILL = (
    *BROKER_AWAY,
    r'"event": "OffsetCommit failed for group \S+ due to group error .*, will rejoin',
    r'"event": "\[\^--CommittingThread\]: Thread keepalive is not responding',
    r"Crashed reason=Unavailable\(",
    r'"event": "ingest failed"',
)


class Fault(ABC):
    """One kind of harm.

    `expected` are patterns of ERROR lines that it may cause, `rejects` codes of dead letters; any other
    one fails the run.
    """

    name: str
    hold_s: float = 0.0
    needs_kafka = False
    expected: tuple[str, ...] = ()
    rejects: frozenset[str] = frozenset()

    @abstractmethod
    def apply(self, target: Target, rng: random.Random) -> None:
        """Do the harm."""

    def heal(self, target: Target) -> None:  # noqa: B027 - most harm needs no undoing
        """Undo what does not undo itself."""

    def is_over(self, target: Target) -> bool:
        """Whether the system has noticed and replaced what was harmed; asked before it is asked to be whole."""
        return True


class Kill(Fault):
    """SIGKILL of one process of a part."""

    def __init__(self, part: str, *expected: str) -> None:
        self.name = f"kill-{part}"
        self.part = part
        self.expected = expected
        self.needs_kafka = part == "kafka"
        self._killed = 0
        self._count = 0

    def apply(self, target: Target, rng: random.Random) -> None:
        self._count = len(target.parts(self.part))
        self._killed = target.kill(self.part, rng.randrange(100))

    def is_over(self, target: Target) -> bool:
        pids = [part.pid for part in target.parts(self.part)]
        return self._killed not in pids and len(pids) >= self._count


class Pause(Fault):
    """SIGSTOP of one process of a part, and SIGCONT after a while."""

    def __init__(self, part: str, hold_s: float, *expected: str) -> None:
        self.name = f"pause-{part}"
        self.part = part
        self.hold_s = hold_s
        self.expected = expected
        self.needs_kafka = part == "kafka"
        self._stopped = 0

    def apply(self, target: Target, rng: random.Random) -> None:
        self._stopped = target.kill(self.part, rng.randrange(100), signal.SIGSTOP)

    def heal(self, target: Target) -> None:
        if any(part.pid == self._stopped for part in target.parts(self.part)):
            os.kill(self._stopped, signal.SIGCONT)


def faults() -> dict[str, Fault]:
    """All faults by name."""
    known: list[Fault] = [
        Kill("ingest"),
        Kill("shard"),
        Kill("embedder"),
        Kill("replica"),
        Kill("supervisor"),
        Kill("api"),
        Kill("kafka", "the broker cannot run", *BROKER_AWAY),
        Kill("broker", *BROKER_AWAY),
        Kill("raylet", "the ray head ended by itself"),
        Kill("ray"),
        Pause("kafka", 60.0, *BROKER_AWAY),
        Pause("ingest", 20.0, *STOOD_STILL),
        Pause("shard", 20.0),
    ]
    return {fault.name: fault for fault in known}


def allowed_errors(applied: Iterable[Fault]) -> tuple[str, ...]:
    """Patterns of the ERROR lines that these faults may cause."""
    return tuple(pattern for fault in applied for pattern in fault.expected)
