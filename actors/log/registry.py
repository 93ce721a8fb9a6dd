"""Which collections exist: the last record per name in the compacted topic `riverlens-collections`."""

from __future__ import annotations

from actors.log.latest import LatestRecords
from contract.errors import NotFound
from contract.events import CollectionSpec, decode_collection, encode_json
from contract.settings import Settings
from contract.topics import COLLECTIONS_TOPIC


class CollectionRegistry:
    """A view of the collections topic, and the way to write to it. Thread-safe.

    Connects at its first use. Every method but `dropped` raises BrokerUnavailable (retryable).
    """

    def __init__(self, settings: Settings) -> None:
        self._records = LatestRecords(settings, COLLECTIONS_TOPIC, "riverlens-registry", decode_collection)

    def refresh(self) -> dict[str, CollectionSpec]:
        """Read to the current end and return the live collections; one request if nothing is new."""
        return {name: spec for name, spec in self._records.read().items() if not spec.dropped}

    def get(self, name: str) -> CollectionSpec:
        """The live collection of this name; reads on if it is unknown. Raises NotFound."""
        spec = self._records.known().get(name)
        if spec is None or spec.dropped:
            spec = self.refresh().get(name)
        if spec is None:
            raise NotFound(f"there is no collection {name!r}")
        return spec

    def latest(self, name: str) -> CollectionSpec | None:
        """The last record of this name, dropped or not, as of now; None if there never was one."""
        return self._records.read().get(name)

    def dropped(self) -> list[CollectionSpec]:
        """Collections that were dropped and not made anew, as of the last reading."""
        return [spec for spec in self._records.known().values() if spec.dropped]

    def put(self, spec: CollectionSpec) -> None:
        """Write a record and return once it is durable; the last one per name counts."""
        self._records.put(spec.name, encode_json(spec))

    def close(self) -> None:
        """Release the connection."""
        self._records.close()
