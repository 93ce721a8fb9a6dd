"""Which words a point has, and what they become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.lexical.index import LexicalTerms
from actors.lexical.words import words_of

TERMS = LexicalTerms()


def words(payload: dict[str, Any], file_name: str | None = None) -> list[str]:
    return words_of(json.dumps(payload).encode(), file_name).split("\n")


def test_caption_tags_and_file_name_are_its_words() -> None:
    payload = {"caption": "a red bird", "tags": ["bird", "tree"], "file_name": "IMG_1.png", "owner": "ada"}
    assert words(payload) == ["a red bird", "bird", "tree", "IMG_1.png"]


def test_the_name_it_was_uploaded_under_counts_where_the_payload_has_none() -> None:
    assert words({"caption": "x"}, "upload.png") == ["x", "upload.png"]
    assert words({"file_name": "own.png"}, "upload.png") == ["own.png"]
    assert words_of(None, None) == ""
    assert words_of(None, "upload.png") == "upload.png"


@pytest.mark.parametrize("odd", [None, 7, True, {"a": "b"}, [1, None, ["nested"]]])
def test_values_of_other_types_are_no_words(odd: object) -> None:
    assert words({"caption": odd, "tags": odd, "file_name": odd}) == [""]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The BIRDS of a feather", ("bird", "feather")),
        ("IMG_2041-red-bird.JPG", ("img", "2041", "red", "bird", "jpg")),
        ("red red RED", ("red",)),
        ("naïve café", ("naiv", "cafe")),
        ("cafe\u0301", ("cafe",)),  # the accent as a character of its own
        ("\uff42\uff49\uff52\uff44", ("bird",)),  # full-width letters
        ("Красная птица", ("красная", "птица")),
        ("红色的鸟", ("红", "色", "的", "鸟")),
        ("東京 tower", ("東", "京", "tower")),
        ("of the and", ()),
        ("?! … --", ()),
        ("", ()),
        ('caption:red AND "x" OR field^2', ("caption", "red", "x", "field", "2")),
        ("x" * 65, ()),
    ],
)
def test_terms(text: str, terms: tuple[str, ...]) -> None:
    assert TERMS.of(text) == terms


def test_a_long_text_costs_a_bounded_number_of_terms() -> None:
    assert len(TERMS.of(" ".join(f"word{n}" for n in range(1000)))) == 64
