"""MiniLM: the text tower of the offline model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from actors.embedding.encoder import l2_normalise
from actors.messages import FloatMatrix

MAX_TOKENS: Final = 128
"""The longest text MiniLM was trained on; the rest of a longer text is cut off."""

_LEADING = re.compile(r"^(?:this is an?|this is|an?|the|some)\s+")


class MiniLM:
    """all-MiniLM-L6-v2 over ONNX: masked mean of the last hidden states, L2-normalised."""

    def __init__(self, model: Path, tokenizer: Path, threads: int) -> None:
        self._session = onnx_session(model, threads)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        """Encode texts as they are: (n, 384) float32, L2-normalised, in order.

        One text at a time: the int8 weights are used with activation scales that are computed per
        call, so in a batch a text's vector would depend on its neighbours. A short text is also
        cheaper alone than padded to a longer one.
        """
        rows = [self._encode_one(text) for text in texts]
        return l2_normalise(np.stack(rows)) if rows else np.zeros((0, 384), dtype=np.float32)

    def _encode_one(self, text: str) -> FloatMatrix:
        ids = np.asarray([self._tokenizer.encode(text).ids], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run(["last_hidden_state"], inputs)
        return np.asarray(hidden[0].mean(axis=0), dtype=np.float32)


def clean_query(text: str) -> str:
    """Bring a search text to the form of the captions the head was trained on.

    Lower case, without a leading article ("a red apple." → "red apple") and a closing dot.
    """
    lowered = " ".join(text.lower().split())
    return _LEADING.sub("", lowered).rstrip(".!") or lowered


def onnx_session(path: Path, threads: int) -> ort.InferenceSession:
    """CPU session of an int8 ONNX model with a bounded number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On a CPU with AVX2 but without VNNI, products of unsigned activations and signed weights saturate at
    # 16 bits, and CLIP's vectors come out at cosine 0.55 to the right ones. This entry makes the weights
    # unsigned there, which is exact; elsewhere it does nothing.
    # Source: kOrtSessionOptionsAvx2PrecisionMode in onnxruntime_session_options_config_keys.h.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
