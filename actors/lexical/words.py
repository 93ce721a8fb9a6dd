"""The words of a point, and how words become terms: the same for what is indexed and for what is asked."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from tantivy import Filter, TextAnalyzer, TextAnalyzerBuilder, Tokenizer

# The payload fields that hold words; each a string or a list of strings.
FIELDS = ("caption", "tags", "file_name")
# Bytes; what is longer is an address or an encoded blob rather than a word.
_LONGEST_TERM_BYTES = 64
# Scripts without spaces between words are indexed character by character, all others word by word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TERM = rf"[{_UNSPACED}]|[\p{{L}}\p{{N}}\p{{M}}&&[^{_UNSPACED}]]+"


def make_analyzer() -> TextAnalyzer:
    """Text to terms: words in lower case, without accents, without English stop words, English endings cut off."""
    return (
        TextAnalyzerBuilder(Tokenizer.regex(_TERM))
        .filter(Filter.remove_long(_LONGEST_TERM_BYTES))
        .filter(Filter.lowercase())
        .filter(Filter.ascii_fold())
        .filter(Filter.stopword("english"))
        .filter(Filter.stemmer("english"))
        .build()
    )


def normalized(text: str) -> str:
    """Text in one spelling (Unicode NFKC): an accent that is a character of its own becomes part of its letter."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def words_of(payload: bytes | None, file_name: str | None) -> str:
    """Caption, tags and file name of a point as one text; empty if it has none.

    Args:
        payload: JSON bytes of the payload.
        file_name: Name the picture was uploaded under; counts where the payload names none.
    """
    decoded: Mapping[str, Any] = msgspec.json.decode(payload) if payload else {}
    texts = [text for field in FIELDS for text in _texts(decoded.get(field))]
    if file_name and not decoded.get("file_name"):
        texts.append(file_name)
    return normalized("\n".join(texts))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for element in value:
            if isinstance(element, str):
                yield element
