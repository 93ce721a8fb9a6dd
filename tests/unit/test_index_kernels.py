"""The compiled loops against FAISS and numpy, which do the same in other ways."""

import os
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from actors.index.codes import Codec
from actors.index.graph import SealedGraph, bitmap_of
from actors.index.growing import GrowingSegment
from actors.index.image_ids import PackedIds
from actors.index.kernels import walking
from actors.index.vector_file import VectorFile
from actors.messages import FloatMatrix
from contract.events import VectorType

K = 14


def unit_vectors(count: int, dimension: int, seed: int) -> FloatMatrix:
    """Unit vectors of low intrinsic dimension, as embeddings are."""
    random = np.random.default_rng(seed)
    seen_through = np.random.default_rng(99).standard_normal((12, dimension))
    rows = random.standard_normal((count, 12)) @ seen_through + 0.1 * random.standard_normal((count, dimension))
    unit: FloatMatrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def graph_of(rows: FloatMatrix, folder: Path, vector_type: VectorType = "fp32") -> SealedGraph:
    codec = Codec("sq8", rows.shape[1])
    index = codec.new_index(8, 40)
    index.add(codec.encode(rows))
    file = VectorFile.new_in(folder, vector_type, rows.shape[1])
    file.write(0, rows)
    ids = PackedIds().extended([str(i) for i in range(len(rows))])
    return SealedGraph(codec, index, np.arange(len(rows), dtype=np.uint32), ids, file)


def by_faiss(graph: SealedGraph, queries: FloatMatrix, ef: int, allowed: np.ndarray | None = None) -> np.ndarray:
    module = vars(faiss)
    selector = {} if allowed is None else {"sel": module["IDSelectorBitmap"](allowed)}
    parameters = module["SearchParametersHNSW"](efSearch=ef, **selector)
    return np.asarray(graph.index.search(graph.codec.encode(queries), K, params=parameters)[1])


def in_common(found: np.ndarray, wanted: np.ndarray) -> float:
    pairs = zip(found.tolist(), wanted.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


@pytest.mark.parametrize("ef", [K, 40, 200])
def test_a_walk_that_reads_whole_codes_finds_what_faiss_finds(tmp_path: Path, ef: int) -> None:
    # Below twice the sample nothing is passed over by a part of its code.
    rows, queries = unit_vectors(3000, 64, 1), unit_vectors(40, 64, 2)
    graph = graph_of(rows, tmp_path)
    _, labels = graph.search(queries, K, ef)
    wanted = by_faiss(graph, queries, ef)
    assert in_common(labels, wanted) > 0.995


@pytest.mark.parametrize("dimension", [256, 264, 512])
def test_passing_over_by_a_sample_of_the_code_costs_next_to_no_recall(tmp_path: Path, dimension: int) -> None:
    rows, queries = unit_vectors(3000, dimension, 1), unit_vectors(60, dimension, 2)
    graph = graph_of(rows, tmp_path)
    _, labels = graph.search(queries, K, 40)
    exact = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    faiss_labels = by_faiss(graph, queries, 40)
    assert in_common(labels, exact) >= in_common(faiss_labels, exact) - 0.01


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_filtered_walk_finds_only_what_is_allowed_and_as_much_as_faiss(tmp_path: Path, share: float) -> None:
    rows, queries = unit_vectors(3000, 64, 1), unit_vectors(40, 64, 2)
    graph = graph_of(rows, tmp_path)
    mask = np.random.default_rng(3).random(len(rows)) < share
    _, labels = graph.search(queries, K, 400, bitmap_of(mask))
    exact = np.argsort(-np.where(mask, queries @ rows.T, -2), axis=1)[:, :10]
    assert mask[labels[labels >= 0]].all()
    assert in_common(labels, exact) >= in_common(by_faiss(graph, queries, 400, bitmap_of(mask)), exact) - 0.01


def test_a_walk_that_meets_too_few_says_so(tmp_path: Path) -> None:
    rows = unit_vectors(30, 64, 1)
    graph = graph_of(rows, tmp_path)
    mask = np.zeros(len(rows), dtype=np.bool_)
    mask[[3, 17]] = True
    scores, labels = graph.search(rows[:2], K, 40, bitmap_of(mask))
    assert [sorted(row[:2]) for row in labels.tolist()] == [[3, 17], [3, 17]]
    assert (labels[:, 2:] == -1).all()
    assert np.isneginf(scores[:, 2:]).all()


@pytest.mark.parametrize("vector_type", ["fp16", "fp32"])
def test_scores_are_those_of_the_stored_vectors_and_descend(tmp_path: Path, vector_type: VectorType) -> None:
    rows, queries = unit_vectors(2000, 64, 1), unit_vectors(20, 64, 2)
    graph = graph_of(rows, tmp_path, vector_type)
    scores, labels = graph.search(queries, K, 60)
    stored = graph.vectors(labels.ravel()).reshape(*labels.shape, -1)
    assert np.allclose(scores, np.einsum("qcd,qd->qc", stored, queries), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_every_float16_is_widened_to_the_same_number(tmp_path: Path) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = halves[np.isfinite(halves)].astype(np.float32)
    file = VectorFile.new_in(tmp_path, "fp16", 1)
    file.write(0, every[:, None])
    labels, scores = np.arange(len(every))[:, None].copy(), np.empty((len(every), 1), dtype=np.float32)
    file.score(np.ones((len(every), 1), dtype=np.float32), labels, scores)
    assert np.array_equal(scores[:, 0], every)


@pytest.mark.parametrize("vector_type", ["fp16", "fp32"])
def test_rows_are_read_in_any_order(tmp_path: Path, vector_type: VectorType) -> None:
    rows = unit_vectors(50, 24, 1)
    file = VectorFile.new_in(tmp_path, vector_type, 24)
    file.write(0, rows)
    labels = np.array([7, 8, 9, 3, 49, 0, 1, 1, 2])
    assert np.allclose(file.read(labels), rows[labels], atol=1e-3)


def test_a_file_that_lacks_a_row_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    rows = unit_vectors(500, 64, 1)
    graph = graph_of(rows, tmp_path)
    assert graph.file is not None
    os.truncate(graph.file.path, 10)
    with pytest.raises(OSError, match="lacks"):
        graph.search(rows[:1], K, 40)
    with pytest.raises(OSError, match="lacks"):
        graph.vectors(np.array([4, 5]))


@settings(deadline=None)
@given(arrays.arrays(np.int8, (3, 40)).map(lambda whole: (whole / 32).astype(np.float32)), st.sampled_from([33, 40]))
def test_bytes_are_the_rotated_vector_brought_to_length_one(vectors: FloatMatrix, dimension: int) -> None:
    vectors = np.ascontiguousarray(vectors[:, :dimension])
    codec = Codec("sq8", dimension)
    signs, left, right = codec.rotation
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = vectors / np.where((norms > 0) & (abs(norms**2 - 1) > 1e-3), norms, 1)
    padded = np.pad(unit, ((0, 0), (0, codec.width - dimension)))
    grid = (padded * signs).reshape(-1, len(left), len(right))
    wanted = np.clip((left.astype(np.float64) @ grid @ right).reshape(len(vectors), -1) + 128, 0, 255)
    # Rounding may differ at the border of two bytes.
    assert np.abs(codec.encode_bytes(vectors) + 0.5 - wanted).max() < 0.6


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 20))
def test_a_scan_finds_the_nearest_codes_that_are_not_hidden(seed: int, count: int, wanted: int) -> None:
    random = np.random.default_rng(seed)
    rows, query = unit_vectors(count, 32, seed), unit_vectors(1, 32, seed + 1)
    hidden = random.random(count) < 0.3
    codec = Codec("sq8", 32)
    codes = codec.encode_bytes(rows)
    places, scores = np.empty((1, wanted), dtype=np.int64), np.empty((1, wanted), dtype=np.float32)
    walking.scan(codes.reshape(-1), rows, hidden, places, scores, *codec.rotation, query)
    distances = ((codes.astype(np.int64) - codec.encode_bytes(query)) ** 2).sum(axis=1)
    living = np.flatnonzero(~hidden)
    nearest = living[np.lexsort((living, distances[living]))][:wanted]
    assert sorted(places[0, : len(nearest)].tolist()) == sorted(nearest.tolist())
    assert (places[0, len(nearest) :] == -1).all()
    assert np.allclose(scores[0, : len(nearest)], np.sort(rows[nearest] @ query[0])[::-1], atol=1e-5)


def test_a_large_growing_segment_is_searched_by_bytes_as_well_as_by_floats() -> None:
    rows, queries = unit_vectors(2000, 512, 1), unit_vectors(30, 512, 2)
    growing = GrowingSegment("sq8", 512)
    growing.append(list(range(2000)), [str(i) for i in range(2000)], rows)
    _, slots = growing.view().search(queries, 10)
    exact = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    assert in_common(slots, exact) > 0.99
