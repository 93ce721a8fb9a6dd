"""The supervisor: makes the actors that the collections want, and keeps them alive."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any, cast

import msgspec
import ray
import structlog
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.cluster import connect
from actors.embedder import EmbedderActor
from actors.index.store import remove_store
from actors.log.collections import create_collection
from actors.log.connection import bootstrap_servers
from actors.log.registry import CollectionRegistry
from actors.logs import configure
from actors.messages import RAY_NAMESPACE, EncoderDescription, ShardStatus, embedder_name
from actors.reconcile import (
    EMBEDDER_PREFIX,
    SHARD_PREFIX,
    EmbedderWanted,
    Observed,
    Reconciler,
    ShardWanted,
    Start,
    Wanted,
    desired,
    is_complete,
)
from actors.shard import ShardActor
from contract.errors import EmbedderUnavailable, RiverlensError, Unavailable
from contract.events import CollectionSpec
from contract.settings import Settings, load_settings
from contract.telemetry import LogField

_log = structlog.get_logger()
TURN_S = 1.0
_PING_S = 1.0
_DESCRIBE_S = 30.0
_STOP_S = 10.0
_JOIN_S = 60.0


class Supervisor:
    """One turn after the other: read the desired state, look at the actors, act. Needs a joined Ray."""

    def __init__(self, settings: Settings, registry: CollectionRegistry) -> None:
        self._settings = settings
        self._registry = registry
        self._reconciler = Reconciler()
        self._specs: dict[str, CollectionSpec] = {}
        self._handles: dict[str, ActorHandle[Any]] = {}
        self._pings: dict[str, ray.ObjectRef[Any]] = {}

    def turn(self) -> None:
        """Bring the actors one step closer to the desired state. Raises nothing for a broker that is away."""
        models: set[str] = set()
        try:
            self._specs = self._registry.refresh()
            if self._default_is_missing():
                models.add(self._settings.model)
        except Unavailable as error:
            _log.warning("the collections cannot be read; keeping what there is", **_fields(error))
        wanted = desired(self._specs.values(), models, self._settings)
        observed = self._observe()
        for action in self._reconciler.plan(wanted, observed, time.monotonic()):
            if isinstance(action, Start):
                self._start(action.wanted)
            else:
                self._stop(action.name, action.reason)
        try:
            self._learn_encoders(models, observed)
            self._remove_stores()
        except Unavailable as error:
            _log.warning("the collections cannot be written", **_fields(error))

    def _default_is_missing(self) -> bool:
        """Whether the default collection never was; one that somebody dropped stays dropped."""
        name = self._settings.collection
        return name not in self._specs and self._registry.latest(name) is None

    def _observe(self) -> dict[str, Observed]:
        """Ask every living actor for its status, all at once; what does not answer in time is silent."""
        names = {
            name
            for entry in ray.util.list_named_actors(all_namespaces=True)
            if entry["namespace"] == RAY_NAMESPACE
            and (name := str(entry["name"])).startswith((EMBEDDER_PREFIX, SHARD_PREFIX))
        }
        for name in set(self._handles) - names:
            self._forget(name)
        for name in names - set(self._pings):
            try:
                handle = self._handles[name] = self._handles.get(name) or ray.get_actor(name, RAY_NAMESPACE)
            except ValueError:
                continue  # it died between the two calls
            self._pings[name] = handle.status.remote()
        refs = list(self._pings.values())
        answered, _ = ray.wait(refs, num_returns=len(refs), timeout=_PING_S) if refs else ([], [])
        observed: dict[str, Observed] = {}
        for name in list(self._pings):
            if self._pings[name] not in answered:
                observed[name] = Observed("silent")
            elif (seen := self._outcome(name, self._pings.pop(name))) is not None:
                observed[name] = seen
        return observed

    def _outcome(self, name: str, ref: ray.ObjectRef[Any]) -> Observed | None:
        """What the answer to a ping says; None for a dead actor."""
        try:
            status = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, EmbedderUnavailable):
                return Observed("silent")  # it is loading
            return Observed("failed", str(error.cause))
        except RayActorError as error:
            _log.warning("actor died", actor=name, **{LogField.ERROR: str(error).splitlines()[0]})
            self._forget(name)
            return None
        if isinstance(status, ShardStatus) and status.state == "failed":
            return Observed("failed", str(status.error))
        return Observed("healthy")

    def _forget(self, name: str) -> None:
        self._handles.pop(name, None)
        self._pings.pop(name, None)

    def _start(self, wanted: Wanted) -> None:
        _log.info("starting actor", actor=wanted.name)
        actor: Any
        arguments: tuple[object, ...]
        options: dict[str, object] = {}
        match wanted:
            case ShardWanted(spec=spec, shard=shard, replica=replica):
                actor, arguments = ShardActor, (self._settings, spec, shard, replica)
            case EmbedderWanted(model=model, role=role, index=index):
                actor, arguments = EmbedderActor, (self._settings, model, role, index)
                options["num_gpus"] = self._settings.embedder_gpus
        # Detached: it outlives this process, and the next supervisor finds it by its name.
        self._handles[wanted.name] = actor.options(
            name=wanted.name, namespace=RAY_NAMESPACE, lifetime="detached", get_if_exists=True, **options
        ).remote(*arguments)

    def _stop(self, name: str, reason: str) -> None:
        _log.warning("stopping actor", actor=name, **{LogField.ERROR: reason})
        handle = self._handles.get(name)
        if handle is not None:
            ray.kill(handle)
        self._forget(name)

    def _learn_encoders(self, models: set[str], observed: dict[str, Observed]) -> None:
        """Make the default collection and complete collections of a model that nobody knew before."""
        for spec in self._specs.values():
            if not is_complete(spec) and (found := self._description(spec.model, observed)) is not None:
                completed = msgspec.structs.replace(
                    spec, model=found.model, fingerprint=found.fingerprint, dimension=found.dimension
                )
                self._registry.put(completed)
                _log.info("collection completed", **{LogField.COLLECTION: spec.name}, fingerprint=found.fingerprint)
        for model in models:
            if (found := self._description(model, observed)) is not None:
                create_collection(
                    self._settings,
                    self._registry,
                    self._settings.collection,
                    found,
                    partitions=self._settings.partitions,
                    shards=self._settings.shards,
                    replicas=self._settings.replicas,
                    **_graph_defaults(),
                )

    def _description(self, model: str, observed: dict[str, Observed]) -> EncoderDescription | None:
        """What a query embedder of the model says it is; None until it is there."""
        name = embedder_name(model, "query", 0)
        seen, handle = observed.get(name), self._handles.get(name)
        if seen is None or seen.health != "healthy" or handle is None:
            return None
        try:
            return cast(EncoderDescription, ray.get(handle.describe.remote(), timeout=_DESCRIBE_S))
        except (RayActorError, RayTaskError, GetTimeoutError) as error:
            _log.warning("embedder does not describe its model", actor=name, **{LogField.ERROR: str(error)})
            return None

    def _remove_stores(self) -> None:
        """Remove the store folders of collections that were dropped, or made anew under the same name."""
        root = self._settings.home_path / "shards"
        for folder in root.glob("*/*"):
            name, incarnation = folder.parent.name, folder.name
            spec = self._specs.get(name) or self._registry.latest(name)
            if spec is None or (spec.incarnation == incarnation and not spec.dropped):
                continue
            if any(actor.startswith(f"{SHARD_PREFIX}{name}/{incarnation}/") for actor in self._handles):
                continue
            _log.info("removing the stores of a collection that is gone", **{LogField.COLLECTION: name})
            remove_store(folder)

    def end_actors(self) -> None:
        """Let every shard close its store, then end all actors."""
        shards = [handle for name, handle in self._handles.items() if name.startswith(SHARD_PREFIX)]
        closing: list[Any] = [handle.stop.remote() for handle in shards]
        if closing:
            _, late = ray.wait(closing, num_returns=len(closing), timeout=_STOP_S)
            if late:
                _log.warning("shards did not close in time", **{LogField.COUNT: len(late)})
        for handle in self._handles.values():
            ray.kill(handle)
        self._handles.clear()
        self._pings.clear()


def _graph_defaults() -> dict[str, int]:
    """Index parameters of a collection whose maker names none."""
    names = CollectionSpec.__struct_fields__[-len(CollectionSpec.__struct_defaults__) :]
    defaults = dict(zip(names, CollectionSpec.__struct_defaults__, strict=True))
    return {name: int(defaults[name]) for name in ("m", "ef_construction", "ef_search")}


def _fields(error: RiverlensError) -> dict[str, str]:
    return {LogField.CODE: error.code, LogField.ERROR: error.detail}


def main() -> int:
    """Run the `supervisor` process of the Procfile; the exit status."""
    settings = load_settings()
    configure(settings, "supervisor")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        if not _join(settings, stopping):
            return 0
        registry = CollectionRegistry(settings)
        supervisor = Supervisor(settings, registry)
        _log.info("supervising")
        while not stopping.is_set():
            started = time.monotonic()
            supervisor.turn()
            stopping.wait(max(0.0, TURN_S - (time.monotonic() - started)))
        if settings.ray_address is None:
            supervisor.end_actors()
        registry.close()
    except RiverlensError as error:
        _log.error("the supervisor cannot go on", **_fields(error))
        return 1
    finally:
        ray.shutdown()
    _log.info("stopped")
    return 0


def _join(settings: Settings, stopping: threading.Event) -> bool:
    """Wait for the broker and Ray; False when told to stop meanwhile. Raises Unavailable after _JOIN_S each."""
    for join in (bootstrap_servers, lambda settings, wait_s: connect(settings, wait_s, forward_logs=True)):
        deadline = time.monotonic() + _JOIN_S
        while True:
            if stopping.is_set():
                return False
            try:
                join(settings, 1.0)
                break
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
    return True


if __name__ == "__main__":
    sys.exit(main())
