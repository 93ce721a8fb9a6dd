"""Measures of retrieval on examples whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.datasets import Picture, content_sha256
from evaluation.retrieval import precision_at, queries_of, ranks, text_to_image


def _picture(identity: str, caption: str, data: bytes = b"x", sub_category: str = "s") -> Picture:
    return Picture(identity, caption, "c", sub_category, lambda: data)


def test_ranks_take_the_best_relevant_picture() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]], dtype=np.float32)
    assert ranks(scores, [{0, 2}, {2}]).tolist() == [2, 3]


def test_ties_count_against_the_system() -> None:
    scores = np.zeros((1, 100), dtype=np.float32)
    assert ranks(scores, [{3}]).tolist() == [100]
    assert ranks(scores, [{3, 4}]).tolist() == [99]


def test_text_to_image_counts_recall_and_mrr() -> None:
    images = np.eye(20, dtype=np.float32)
    texts = np.zeros((2, 20), dtype=np.float32)
    texts[0, 5] = 1.0
    texts[1] = np.arange(20, 0, -1)
    result = text_to_image(texts, images, [{5}, {6}])
    assert (result.queries, result.pictures) == (2, 20)
    assert (result.recall_at_1, result.recall_at_5, result.recall_at_10) == (0.5, 0.5, 1.0)
    assert result.mrr == pytest.approx((1 + 1 / 7) / 2)
    assert "R@10 100.0%" in str(result)


def test_precision_counts_neighbours_of_the_same_label() -> None:
    images = np.zeros((7, 2), dtype=np.float32)
    images[:3] = [1, 0]
    images[3:6] = [0, 1]
    images[6] = [np.sqrt(0.5), np.sqrt(0.5)]
    assert precision_at(images, ["a"] * 3 + ["b"] * 3 + ["lonely"], k=2) == (1.0, 6)
    mixed, queries = precision_at(images, ["a", "b", "a", "b", "a", "b", "lonely"], k=2)
    assert queries == 6
    assert mixed == pytest.approx((0.5 + 0 + 0.5 + 0.5 + 0 + 0.5) / 6)
    assert precision_at(images, [str(i) for i in range(7)], k=2) == (0.0, 0)


def test_equal_captions_are_one_query() -> None:
    queries, relevant = queries_of([_picture("1", "A cat"), _picture("2", "a dog"), _picture("3", "a CAT")])
    assert queries == ["a cat", "a dog"]
    assert relevant == [{0, 2}, {1}]


def test_data_hash_covers_bytes_and_labels() -> None:
    base = content_sha256([_picture("1", "a cat")])
    assert base == content_sha256([_picture("1", "a cat")])
    others = [
        [_picture("2", "a cat")],
        [_picture("1", "a dog")],
        [_picture("1", "a cat", b"y")],
        [_picture("1", "a cat", sub_category="t")],
        [_picture("1", "a cat"), _picture("2", "a cat")],
    ]
    assert base not in {content_sha256(pictures) for pictures in others}
