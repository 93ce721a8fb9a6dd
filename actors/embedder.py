"""The embedder actor: one encoder behind batched calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import ray
import structlog

from actors.embedding.registry import load_encoder
from actors.logs import configure
from actors.messages import EmbedderRole, EmbedderStatus, EncoderDescription, FloatMatrix, Pixels
from contract.errors import EmbedderUnavailable, EncodingFailed, RiverlensError
from contract.settings import Settings
from contract.telemetry import LogField

_log = structlog.get_logger()


# One that died is started anew by the supervisor. GPUs are claimed through `.options`.
@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)
class EmbedderActor:
    """Runs one encoder in one thread, so that calls never meet inside it.

    Methods are those of `handles.EmbedderClient`. Loading takes place in that thread too: the first
    calls wait for it, and if it failed every call raises why.
    """

    def __init__(self, settings: Settings, model: str, role: EmbedderRole, index: int) -> None:
        configure(settings, f"embedder-{role}-{index}")
        self._settings = settings
        self._model = model
        self._images = 0
        self._texts = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._waiting: list[tuple[str, asyncio.Future[FloatMatrix]]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._loading = self._thread.submit(self._load)

    def _load(self) -> None:
        encoder = load_encoder(self._settings, self._model)
        encoder.warm_up()
        self._encoder = encoder
        _log.info("encoder loaded", model=self._model, fingerprint=encoder.description.fingerprint)

    async def _loaded(self) -> None:
        await asyncio.wrap_future(self._loading)

    async def describe(self) -> EncoderDescription:
        """Model, fingerprint, dimension, preprocessing. Raises what loading raised, such as ModelUnavailable."""
        await self._loaded()
        return self._encoder.description

    async def encode_images(self, pixels: Pixels) -> FloatMatrix:
        """(n, s, s, 3) uint8 → (n, d) float32, `embed_batch` pictures at a time.

        Raises EncodingFailed, and what loading raised.
        """
        await self._loaded()
        size = self._settings.embed_batch
        parts = [
            # Part by part, so that calls that come meanwhile get their turn between two.
            await self._encode(partial(self._encoder.encode_images, pixels[start : start + size]))
            for start in range(0, max(len(pixels), 1), size)
        ]
        self._images += len(pixels)
        return np.concatenate(parts)

    async def encode_texts(self, texts: Sequence[str]) -> FloatMatrix:
        """N texts → (n, d) float32. Texts of concurrent calls are encoded as one batch.

        Raises EncodingFailed, and what loading raised.
        """
        await self._loaded()
        if not texts:
            return np.empty((0, self._encoder.description.dimension), dtype=np.float32)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[FloatMatrix]] = [loop.create_future() for _ in texts]
        self._waiting += zip(texts, futures, strict=True)
        if self._flushing is None or self._flushing.done():
            self._flushing = loop.create_task(self._flush())
        rows = await asyncio.gather(*futures)
        self._texts += len(texts)
        return np.stack(rows)

    async def _flush(self) -> None:
        """Encode what waits, `embed_batch` texts at a time, until nothing waits."""
        while self._waiting:
            batch, self._waiting = (
                self._waiting[: self._settings.embed_batch],
                self._waiting[self._settings.embed_batch :],
            )
            texts = [text for text, _ in batch]
            try:
                rows = await self._encode(partial(self._encoder.encode_texts, texts))
            except RiverlensError as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.done():
                    future.set_result(row)

    async def _encode(self, work: Callable[[], FloatMatrix]) -> FloatMatrix:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RiverlensError:
            raise
        except Exception as error:
            _log.exception("encoding failed", **{LogField.ERROR: str(error)})
            raise EncodingFailed(f"{type(error).__name__}: {error}") from error

    async def status(self) -> EmbedderStatus:
        """Health. Raises EmbedderUnavailable (retryable) while loading, and what loading raised."""
        if not self._loading.done():
            raise EmbedderUnavailable(f"{self._model} is loading")
        await self._loaded()
        description = self._encoder.description
        return EmbedderStatus(
            model=self._model,
            fingerprint=description.fingerprint,
            device=description.device,
            pid=os.getpid(),
            images_encoded=self._images,
            texts_encoded=self._texts,
        )
