"""Runs a stand-in for the embedder actor: `python -m tests.integration.fake_embedder MODEL`.

It stands at the Ray boundary only, so that the tests of `streams` need no weights. Its vectors
follow from the mean colour of the picture.
"""

from __future__ import annotations

import sys

import ray

from actors.cluster import connect
from actors.messages import RAY_NAMESPACE, EncoderDescription, FloatMatrix, Pixels, PreprocessSpec, embedder_name
from contract.settings import load_settings

DIMENSION = 4
FINGERPRINT = "fake-encoder-1"
PREPROCESS = PreprocessSpec(8, "squash", "bilinear", 0.0, (0, 0, 0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def description(model: str) -> EncoderDescription:
    """What the stand-in says of itself."""
    return EncoderDescription(model, FINGERPRINT, DIMENSION, PREPROCESS, "cpu")


def main() -> None:
    """Name the actor, say so, and keep it for as long as this process lives."""
    model = sys.argv[1]
    connect(load_settings())
    described, dimension = description(model), DIMENSION

    # Defined here so that Ray ships it by value: workers do not import the tests.
    @ray.remote(num_cpus=0.05)
    class FakeEmbedder:
        def describe(self) -> EncoderDescription:
            return described

        def encode_images(self, pixels: Pixels, request_ids: tuple[str, ...] = ()) -> FloatMatrix:
            import numpy as np  # noqa: PLC0415

            colours = pixels.reshape(len(pixels), -1, 3).mean(axis=1) + 1.0
            rows = np.concatenate([colours, np.ones((len(pixels), dimension - 3))], axis=1)
            return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    actor = FakeEmbedder.options(name=embedder_name(model, "ingest", 0), namespace=RAY_NAMESPACE).remote()  # type: ignore[attr-defined]
    ray.get(actor.describe.remote())
    print("ready", flush=True)  # noqa: T201
    sys.stdin.read()


if __name__ == "__main__":
    main()
