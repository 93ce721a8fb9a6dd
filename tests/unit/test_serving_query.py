"""Query vectors: combination, cache, fingerprint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.errors import FingerprintMismatch, InvalidRequest, NotFound
from serving.catalog import Catalog, ServedCollection
from serving.metrics import Metrics
from serving.query import Part, QueryCache, QueryEncoder, combine
from serving.schemas import SearchRequest
from tests.decoding import shared_decoder
from tests.unit.serving_fakes import FakeSystem, encode_pixels, make_spec, make_system


def _unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def test_one_part_is_searched_with_as_it_is() -> None:
    vector = np.array([1.0, 1.0], np.float32)
    assert combine([Part(0.3, vector)]) is vector


def test_a_combined_query_scores_the_weighted_mean_of_its_parts() -> None:
    parts = [Part(3.0, _unit(1, 0, 1)), Part(1.0, _unit(0, 1, 1)), Part(-0.5, _unit(1, 1, 0))]
    point = _unit(0.2, 0.5, -0.3)
    expected = sum(p.weight * float(p.vector @ point) for p in parts) / sum(abs(p.weight) for p in parts)
    assert float(combine(parts) @ point) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("parts", [[], [Part(-1.0, _unit(1, 0))], [Part(0.0, _unit(1, 0))]])
def test_a_query_needs_something_to_look_for(parts: list[Part]) -> None:
    with pytest.raises(InvalidRequest):
        combine(parts)


def test_parts_that_cancel_out_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="cancel"):
        combine([Part(1.0, _unit(1, 0)), Part(-1.0, _unit(1, 0))])


def test_the_cache_is_bounded_and_forgets_what_was_used_longest_ago() -> None:
    cache = QueryCache(2)
    for text in ("a", "b"):
        cache.put("f", text, _unit(1, 0))
    assert cache.get("f", "a") is not None
    cache.put("f", "c", _unit(1, 0))
    assert (cache.get("f", "a") is not None, cache.get("f", "b"), len(cache)) == (True, None, 2)


def test_the_cache_never_gives_a_vector_of_another_encoder() -> None:
    cache = QueryCache(2)
    cache.put("one", "a", _unit(1, 0))
    assert cache.get("other", "a") is None


def test_a_cache_of_no_size_keeps_nothing() -> None:
    cache = QueryCache(0)
    cache.put("f", "a", _unit(1, 0))
    assert len(cache) == 0


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path)


async def _parts(system: FakeSystem) -> tuple[QueryEncoder, ServedCollection]:
    collection = await Catalog(system.dependencies()).get("images")
    return QueryEncoder(system.settings, system.objects, shared_decoder(), Metrics()), collection


async def test_a_text_is_encoded_once(system: FakeSystem) -> None:
    encoder, collection = await _parts(system)
    encoded = [await encoder.encode(collection, SearchRequest(text="red"), None) for _ in range(3)]
    assert system.embedders["fake", "query"].texts == ["red"]
    assert all(np.array_equal(one.vector, encoded[0].vector) for one in encoded)
    assert [one.cached for one in encoded] == [False, True, True]


async def test_an_encoder_that_is_not_the_collections_is_refused(system: FakeSystem) -> None:
    system.embedder("fake", "query", 1).fingerprint = "another"
    encoder, collection = await _parts(system)
    with pytest.raises(FingerprintMismatch):
        await encoder.encode(collection, SearchRequest(text="red"), None)


async def test_a_running_encoder_that_is_exchanged_is_noticed(system: FakeSystem) -> None:
    now = [0.0]
    collection = await Catalog(system.dependencies()).get("images")
    encoder = QueryEncoder(system.settings, system.objects, shared_decoder(), Metrics(), clock=lambda: now[0])
    await encoder.encode(collection, SearchRequest(text="red"), None)
    system.embedders["fake", "query"].fingerprint = "another"
    now[0] += 5
    with pytest.raises(FingerprintMismatch):
        await encoder.encode(collection, SearchRequest(text="blue"), None)


async def test_an_unknown_image_id_is_not_found(system: FakeSystem) -> None:
    encoder, collection = await _parts(system)
    with pytest.raises(NotFound):
        await encoder.encode(collection, SearchRequest(image_id="nobody"), None)


async def test_a_crop_without_a_picture_is_refused(system: FakeSystem) -> None:
    encoder, collection = await _parts(system)
    request = SearchRequest.model_validate({"text": "red", "crop": {"x": 0, "y": 0, "width": 1, "height": 1}})
    with pytest.raises(InvalidRequest, match="crop"):
        await encoder.encode(collection, request, None)


async def test_the_catalog_serves_from_memory_while_the_broker_is_down(system: FakeSystem) -> None:
    now = [0.0]
    catalog = Catalog(system.dependencies(), clock=lambda: now[0])
    before = await catalog.get("images")
    system.broker_down = True
    now[0] += 100
    assert await catalog.get("images") is before


async def test_the_catalog_notices_a_changed_collection(system: FakeSystem) -> None:
    catalog = Catalog(system.dependencies())
    before = await catalog.get("images")
    system.add(make_spec(ef_search=128))
    await catalog.refresh()
    after = await catalog.get("images")
    assert (before.spec.ef_search, after.spec.ef_search) == (64, 128)
    assert after.embedder is before.embedder


def test_fakes_encode_to_unit_vectors() -> None:
    vectors = encode_pixels(np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), np.uint8))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
