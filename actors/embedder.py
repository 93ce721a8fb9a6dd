"""The embedder actor: one encoder, one thread that runs it, batches in and vectors out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ray
import structlog

from actors.call_context import answering
from actors.embedding.batching import TextBatcher
from actors.embedding.encoder import Encoder
from actors.embedding.registry import load_encoder
from actors.logs import configure
from actors.messages import EmbedderStatus, EncoderDescription, FloatMatrix, Pixels
from contract.errors import EncodingFailed, RiverlensError
from contract.settings import Settings
from contract.telemetry import LogField

_log = structlog.get_logger()


@ray.remote
class Embedder:
    """Runs one encoder. Loading happens while the actor starts; calls wait for it.

    When the model cannot be loaded, every call raises the reason instead of the actor dying
    without one. A big call is cut into batches, so that a small one does not wait for all of it.
    """

    def __init__(self, settings: Settings, model: str, name: str) -> None:
        configure(settings, name)
        self._batch = settings.embed_batch
        self._executor = ThreadPoolExecutor(1, "encode")
        self._images_encoded = 0
        self._texts_encoded = 0
        self._encoder: Encoder | None = None
        self._failure: RiverlensError | None = None
        try:
            self._encoder = load_encoder(settings, model)
            self._encoder.warm_up()
        except RiverlensError as error:
            self._failure = error
            _log.error("model cannot be loaded", **{LogField.CODE: error.code, LogField.ERROR: error.detail})
            return
        self._texts = TextBatcher(self._encoder.encode_texts, self._executor)
        description = self._encoder.description
        _log.info("embedder is ready", model=description.model, device=description.device)

    def _loaded(self) -> Encoder:
        if self._encoder is None:
            raise self._failure or EncodingFailed("no encoder is loaded")
        return self._encoder

    async def describe(self, request_ids: Sequence[str] = ()) -> EncoderDescription:
        """Which encoder this is; raises ModelUnavailable, SettingsInvalid."""
        with answering("describe", request_ids):
            return self._loaded().description

    async def encode_images(self, pixels: Pixels, request_ids: Sequence[str] = ()) -> FloatMatrix:
        """(n, s, s, 3) uint8 → (n, d) float32, L2-normalised; raises EncodingFailed."""
        encoder = self._loaded()
        loop = asyncio.get_running_loop()
        parts: list[FloatMatrix] = []
        try:
            with answering("encode_images", request_ids):
                for start in range(0, max(1, len(pixels)), self._batch):
                    part = pixels[start : start + self._batch]
                    parts.append(await loop.run_in_executor(self._executor, encoder.encode_images, part))
        except Exception as error:
            raise EncodingFailed(f"{len(pixels)} pictures: {type(error).__name__}: {error}") from error
        self._images_encoded += len(pixels)
        return np.concatenate(parts)

    async def encode_texts(self, texts: Sequence[str], request_ids: Sequence[str] = ()) -> FloatMatrix:
        """N texts → (n, d) float32 query vectors; raises EncodingFailed."""
        self._loaded()
        try:
            with answering("encode_texts", request_ids):
                rows = await self._texts.encode(texts)
        except Exception as error:
            raise EncodingFailed(f"{len(texts)} texts: {type(error).__name__}: {error}") from error
        self._texts_encoded += len(texts)
        return rows

    async def status(self, request_ids: Sequence[str] = ()) -> EmbedderStatus:
        """Health and counts; raises why the model could not be loaded."""
        with answering("status", request_ids):
            description = self._loaded().description
        return EmbedderStatus(
            model=description.model,
            fingerprint=description.fingerprint,
            device=description.device,
            pid=os.getpid(),
            images_encoded=self._images_encoded,
            texts_encoded=self._texts_encoded,
        )
