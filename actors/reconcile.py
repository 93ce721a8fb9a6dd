"""From the desired state to what must be done about the actors there are. Plain logic, no Ray."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, TypeAlias

from msgspec import Struct

from actors.messages import EmbedderRole, embedder_name, shard_name
from contract.events import CollectionSpec
from contract.settings import Settings

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
HEALTHY_FOR_S = 60.0
SILENT_S = 30.0
START_S = 300.0

EMBEDDER_PREFIX = "embedder/"
SHARD_PREFIX = "shard/"


class EmbedderWanted(Struct, frozen=True):
    """An embedder that shall live."""

    model: str
    role: EmbedderRole
    index: int

    @property
    def name(self) -> str:
        """Its Ray name."""
        return embedder_name(self.model, self.role, self.index)


class ShardWanted(Struct, frozen=True):
    """A shard replica that shall live."""

    spec: CollectionSpec
    shard: int
    replica: int

    @property
    def name(self) -> str:
        """Its Ray name."""
        return shard_name(self.spec.name, self.spec.incarnation, self.shard, self.replica)


Wanted: TypeAlias = EmbedderWanted | ShardWanted


class Observed(Struct, frozen=True):
    """What was seen of one living actor: it answered, it answered that it failed, or it did not answer."""

    health: Literal["healthy", "failed", "silent"]
    reason: str = ""


class Start(Struct, frozen=True):
    """Start this actor."""

    wanted: Wanted


class Stop(Struct, frozen=True):
    """End this actor, for this reason. If it is still wanted, a later plan starts it again."""

    name: str
    reason: str
    wanted: bool


Action: TypeAlias = Start | Stop


def is_complete(spec: CollectionSpec) -> bool:
    """Whether the encoder of the collection is known; without it no shard can be made."""
    return bool(spec.fingerprint) and spec.dimension > 0


def desired(specs: Iterable[CollectionSpec], models: Collection[str], settings: Settings) -> dict[str, Wanted]:
    """The actors that shall live: shards per collection, embedders per model in use and for `models`.

    Embedders of `models` are wanted for the query role only: to learn what the model is.
    """
    live = [spec for spec in specs if not spec.dropped]
    wanted: list[Wanted] = []
    used = {spec.model for spec in live if is_complete(spec)}
    asked = {spec.model for spec in live if not is_complete(spec)} | set(models)
    for model in sorted(used):
        wanted += [EmbedderWanted(model, "ingest", index) for index in range(settings.embedders)]
    for model in sorted(used | asked):
        wanted += [EmbedderWanted(model, "query", index) for index in range(settings.query_embedders)]
    for spec in live:
        if is_complete(spec):
            wanted += [
                ShardWanted(spec, shard, replica) for shard in range(spec.shards) for replica in range(spec.replicas)
            ]
    return {one.name: one for one in wanted}


class _History(Struct):
    """What happened to one name so far."""

    attempts: int = 0
    not_before_s: float = float("-inf")
    healthy_since_s: float | None = None
    silent_since_s: float | None = None
    answered: bool = False


class Reconciler:
    """Plans turn by turn, and remembers what keeps failing. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    def plan(self, wanted: Mapping[str, Wanted], observed: Mapping[str, Observed], now_s: float) -> list[Action]:
        """What to do now. `observed` has every living actor of Riverlens, wanted or not.

        An actor that is not there is started; one that failed, or was silent for too long, is
        stopped and started anew. The first start is at once; each further one waits twice as long
        as the one before, up to BACKOFF_MAX_S, until the actor was healthy for HEALTHY_FOR_S.
        """
        actions: list[Action] = []
        for name in set(self._histories) - set(wanted):
            del self._histories[name]
        for name, one in wanted.items():
            history = self._histories.setdefault(name, _History())
            seen = observed.get(name)
            if seen is None:
                actions += self._missing(history, one, now_s)
            elif seen.health == "healthy":
                self._healthy(history, now_s)
            elif seen.health == "failed":
                history.healthy_since_s = history.silent_since_s = None
                if now_s >= history.not_before_s:
                    actions.append(Stop(name, seen.reason, wanted=True))
            else:
                actions += self._silent(history, name, now_s)
        actions += [Stop(name, "nobody wants it any more", wanted=False) for name in observed if name not in wanted]
        return actions

    def _missing(self, history: _History, one: Wanted, now_s: float) -> list[Action]:
        history.healthy_since_s = history.silent_since_s = None
        history.answered = False
        if now_s < history.not_before_s:
            return []
        history.not_before_s = now_s + min(BACKOFF_FIRST_S * 2**history.attempts, BACKOFF_MAX_S)
        history.attempts += 1
        return [Start(one)]

    def _healthy(self, history: _History, now_s: float) -> None:
        history.answered = True
        history.silent_since_s = None
        if history.healthy_since_s is None:
            history.healthy_since_s = now_s
        if now_s - history.healthy_since_s >= HEALTHY_FOR_S:
            history.attempts = 0

    def _silent(self, history: _History, name: str, now_s: float) -> list[Action]:
        if history.silent_since_s is None:
            history.silent_since_s = now_s
        # An actor that never answered is still loading.
        patience_s = SILENT_S if history.answered else START_S
        if now_s - history.silent_since_s < patience_s:
            return []
        history.silent_since_s = None
        return [Stop(name, f"no answer for {patience_s:g} s", wanted=True)]
