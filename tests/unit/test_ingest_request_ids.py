"""The embedder of the ingest path is told whose uploads it works on."""

from __future__ import annotations

import msgspec

from tests.unit.ingest_fakes import png, source, upload
from tests.unit.test_streams_pipeline import Bench


async def test_one_call_names_the_requests_of_all_its_uploads() -> None:
    bench = Bench()
    events = []
    for number, request_id in enumerate(("first", "second", "first", None)):
        bench.objects.put(png(number))
        events.append(msgspec.structs.replace(upload(f"id-{number}", png(number)), request_id=request_id))
    await bench.run(source(events), batch=4)
    assert bench.embedder.request_ids == [("first", "second")]
