"""A BM25 index of words in memory: one document per image id."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from tantivy import Document, Index, Occur, Query, SchemaBuilder, Searcher

from actors.lexical.words import make_analyzer, normalized

_ID, _VERSION, _WORDS = "image_id", "version", "words"
_ANALYZER = "riverlens"
# The least that tantivy takes; a commit frees it.
_WRITER_BYTES = 15_000_000
# What a query may cost: a text of thousands of words would look each of them up.
_TERMS_MAX = 64


class Match(Struct, frozen=True):
    """A document that holds a word of the query.

    `score` is BM25, above 0; `version` is what the document was put with.
    """

    image_id: str
    version: int
    score: float


class LexicalView:
    """The index as of one commit. Thread-safe: it never changes."""

    def __init__(self, searcher: Searcher, query: LexicalTerms) -> None:
        self._searcher = searcher
        self._terms = query

    def __len__(self) -> int:
        return self._searcher.num_docs

    def top(self, terms: Sequence[str], limit: int, offset: int = 0) -> list[Match]:
        """The documents with at least one of the terms, best first; the order among equal scores is that of one view.

        Source: BM25 with k1 1.2 and b 0.75 (Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and
        Beyond, 2009), as tantivy computes it over the documents of this shard.
        """
        if not terms:
            return []
        found = self._searcher.search(self._terms.query(terms), limit, count=False, offset=offset)
        matches = []
        for score, address in found.hits:
            document = self._searcher.doc(address)
            matches.append(Match(str(document.get_first(_ID)), int(document.get_first(_VERSION) or 0), float(score)))
        return matches


class LexicalTerms:
    """The schema, and the way from words to a query."""

    def __init__(self) -> None:
        self._analyzer = make_analyzer()
        self.schema = (
            SchemaBuilder()
            .add_text_field(_ID, stored=True, tokenizer_name="raw", index_option="basic")
            .add_unsigned_field(_VERSION, stored=True)
            # One field for all words: a word in caption and tags is one word that occurs twice, and
            # saturates as such, instead of counting in full in each of them.
            .add_text_field(_WORDS, tokenizer_name=_ANALYZER, index_option="freq")
            .build()
        )

    def of(self, text: str) -> tuple[str, ...]:
        """The different terms of a text, at most 64, in its order."""
        return tuple(dict.fromkeys(self._analyzer.analyze(normalized(text))))[:_TERMS_MAX]

    def query(self, terms: Sequence[str]) -> Query:
        """Documents that hold at least one of the terms."""
        return Query.boolean_query([(Occur.Should, Query.term_query(self.schema, _WORDS, one)) for one in terms])


class LexicalIndex:
    """Documents by image id. One thread at a time changes it; `view` may be searched by any number."""

    def __init__(self) -> None:
        self.terms = LexicalTerms()
        # In memory: it is made from the store at every start, so no file of it can disagree with the store.
        self._index = Index(self.terms.schema)
        self._index.register_tokenizer(_ANALYZER, make_analyzer())
        self._index.config_reader("manual")
        self._writer = self._index.writer(_WRITER_BYTES, 1)

    def add(self, image_id: str, version: int, words: str) -> None:
        """Put a document for an id that has none."""
        document = Document()
        document.add_text(_ID, image_id)
        document.add_unsigned(_VERSION, version)
        document.add_text(_WORDS, words)
        self._writer.add_document(document)

    def put(self, image_id: str, version: int, words: str) -> None:
        """Put the document of an id in the place of the one it has."""
        self.remove(image_id)
        self.add(image_id, version, words)

    def remove(self, image_id: str) -> None:
        """Remove the document of an id, if it has one."""
        self._writer.delete_documents_by_term(_ID, image_id)

    def commit(self) -> LexicalView:
        """The index with everything that was put and removed."""
        self._writer.commit()
        self._index.reload()
        return LexicalView(self._index.searcher(), self.terms)
