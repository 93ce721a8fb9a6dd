"""Which collections a run of the ingest worker means by their names."""

from __future__ import annotations

import msgspec
import pytest

from contract.errors import NotFound
from contract.events import CollectionSpec
from streams.worker import Collections
from tests.unit.ingest_fakes import SPEC


async def test_another_collection_of_the_same_name_is_not_meant() -> None:
    class Registry:
        def __init__(self) -> None:
            self.specs = {SPEC.name: SPEC}

        def refresh(self) -> dict[str, CollectionSpec]:
            return dict(self.specs)

    registry = Registry()
    collections = Collections(registry)  # type: ignore[arg-type]
    await collections.refresh()
    served = collections.serve()
    assert collections(SPEC.name) == SPEC
    # Its events are of the topic before; their records would stand in the log of the new one.
    registry.specs = {SPEC.name: msgspec.structs.replace(SPEC, incarnation="two")}
    await collections.refresh()
    with pytest.raises(NotFound):
        collections(SPEC.name)
    assert collections.incarnations() != served
