"""Bytes of records, of frames between the API and a shard, of answers over HTTP, and of codes in a graph."""

from __future__ import annotations

import hashlib
from typing import Any, Final, get_args

import faiss
import msgspec
import numpy as np

from actors.index.codes import Codec
from actors.messages import Candidate, Freshness, ShardQuery, ShardSearch, ShardSearchResult
from actors.search_port.frames import encode_request, encode_result, framed
from benchmarks.result_file import Result
from contract.events import (
    BytesHolder,
    ImageUploaded,
    KnownBytes,
    PointEmbedded,
    Quantization,
    encode_json,
    encode_known_bytes,
    encode_log_entry,
)
from contract.topics import known_bytes_key, vector_key

DIMENSIONS: Final = (256, 512, 768)
PAYLOAD: Final = {"caption": "a red bird on a wet branch in the morning", "tags": ["bird", "red"], "owner": "ada"}
"""What a picture with a caption, two tags and an owner carries."""
K: Final = 10

_ID, _SHA256, _FINGERPRINT = "9f86d081-8846-4c36-a112-70e9d5f1f2b3", "9f86d081884c7d65" * 4, "9f86d081884c7d65"
_OFFSET, _AT_MS = 12_345_678, 1_763_762_400_000


def _log_record(dimension: int) -> int:
    entry = PointEmbedded(
        image_id=_ID,
        vector=np.zeros(dimension, "<f4").tobytes(),
        fingerprint=_FINGERPRINT,
        payload=PAYLOAD,
        object_key=f"images/{_SHA256}",
        sha256=_SHA256,
        content_type="image/jpeg",
        file_name="DSC_0042.jpg",
        width=4032,
        height=3024,
        source_offset=_OFFSET,
        event_at_ms=_AT_MS,
    )
    return len(vector_key(_ID)) + len(encode_log_entry(entry))


def _event_record() -> int:
    event = ImageUploaded(
        collection="images",
        image_id=_ID,
        object_key=f"images/{_SHA256}",
        sha256=_SHA256,
        size_bytes=2_345_678,
        uploaded_at_ms=_AT_MS,
        content_type="image/jpeg",
        file_name="DSC_0042.jpg",
        payload=PAYLOAD,
        request_id=_ID,
    )
    return len(_ID) + len(encode_json(event))


def _known_bytes_record() -> int:
    key = known_bytes_key("9f86d081884c4c36", _FINGERPRINT, _SHA256) or b""
    return len(key) + len(encode_known_bytes(KnownBytes((BytesHolder(_ID, _OFFSET),))))


def _request_frame(dimension: int, batch: int) -> int:
    vectors = np.zeros((batch, dimension), np.float32)
    asked = ShardSearch(_FINGERPRINT, vectors, (ShardQuery(K, ef_search=64),) * batch, True, (_ID,) * batch)
    return len(framed(encode_request(asked)))


def _answer_frame(batch: int) -> int:
    point = Candidate(_ID, 0.731, msgspec.json.encode(PAYLOAD))
    result = ShardSearchResult(((point,) * K,) * batch, Freshness({0: _OFFSET}, 0.1))
    return len(framed(encode_result(result)))


def measure(seed: int) -> tuple[list[Result], str]:
    """Lengths of encoded records; nothing is timed and nothing is random."""
    del seed
    one, two = _answer_frame(1), _answer_frame(2)
    results = [
        Result("payload_bytes", len(msgspec.json.encode(PAYLOAD)), "bytes"),
        Result("image_event_bytes", _event_record(), "bytes"),
        Result("known_bytes_record_bytes", _known_bytes_record(), "bytes"),
        Result("answer_bytes_per_query", two - one, "bytes"),
        Result("answer_bytes_per_batch", 2 * one - two, "bytes"),
    ]
    results += [
        Result(f"candidates_{quantization}", Codec(quantization, DIMENSIONS[0]).candidates(K), "1")
        for quantization in get_args(Quantization)
    ]
    for dimension in DIMENSIONS:
        first, second = _request_frame(dimension, 1), _request_frame(dimension, 2)
        results += [
            Result(f"embedding_log_bytes_{dimension}", _log_record(dimension), "bytes"),
            Result(f"request_bytes_per_query_{dimension}", second - first, "bytes"),
            Result(f"request_bytes_per_batch_{dimension}", 2 * first - second, "bytes"),
        ]
        results += [
            Result(f"code_bytes_{quantization}_{dimension}", _code_bytes(quantization, dimension), "bytes")
            for quantization in get_args(Quantization)
        ]
    return results, hashlib.sha256(msgspec.json.encode([one.name for one in results])).hexdigest()


def _code_bytes(quantization: Quantization, dimension: int) -> int:
    index: Any = Codec(quantization, dimension).new_index(16, 100)
    module: Any = faiss
    return int(module.downcast_index(index.storage).sa_code_size())
