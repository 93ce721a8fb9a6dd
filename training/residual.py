"""The network that corrects ConSE, and its training with a contrastive loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from actors.embedding.head import CONSE_INPUT_SCALE, RESIDUAL_WEIGHT, TEXT_DIMENSION
from actors.messages import FloatMatrix

EPOCHS: Final = 40
BATCH: Final = 512
HIDDEN: Final = 512
DROPOUT: Final = 0.3
LEARNING_RATE: Final = 1e-3
WEIGHT_DECAY: Final = 1e-2
INPUT_NOISE: Final = 0.1
"""Deviation of the noise on the standardised features; a few thousand pairs are learned by heart without it."""

_FIRST_LOG_SCALE: Final = 2.7
_LARGEST_SCALE: Final = 50.0


@dataclass(frozen=True)
class Pairs:
    """Training pairs, row by row.

    `clip` is (n, 512) standardised CLIP features, `base` (n, 384) ConSE vectors, `text` (n, 384) caption
    embeddings; rows with equal `captions` are positives of each other.
    """

    clip: FloatMatrix
    base: FloatMatrix
    text: FloatMatrix
    captions: Sequence[str]


@dataclass(frozen=True)
class Residual:
    """Weights of one trained network, named as in `actors.embedding.head.Head`. `loss` is the last epoch's."""

    alpha: float
    w1: npt.NDArray[np.float32]
    b1: npt.NDArray[np.float32]
    w2: npt.NDArray[np.float32]
    b2: npt.NDArray[np.float32]
    loss: float


class _Network(nn.Module):
    def __init__(self, clip_dimension: int) -> None:
        super().__init__()
        self.first = nn.Linear(clip_dimension + TEXT_DIMENSION, HIDDEN)
        self.second = nn.Linear(HIDDEN, TEXT_DIMENSION)
        self.drop = nn.Dropout(DROPOUT)
        self.alpha = nn.Parameter(torch.tensor(1.0))
        self.log_scale = nn.Parameter(torch.tensor(_FIRST_LOG_SCALE))

    def forward(self, clip: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        hidden = functional.gelu(self.first(torch.cat([clip, base * float(CONSE_INPUT_SCALE)], dim=1)))
        correction = functional.normalize(self.second(self.drop(hidden)), dim=-1)
        return functional.normalize(self.alpha * base + correction * float(RESIDUAL_WEIGHT), dim=-1)


def train_residual(pairs: Pairs, seed: int, epochs: int = EPOCHS) -> Residual:
    """Train one network; equal pairs, seed and number of epochs give equal weights on one machine.

    Source: InfoNCE, van den Oord et al. 2018, "Representation learning with contrastive predictive
    coding", in both directions, with all rows of one caption as positives.
    """
    torch.manual_seed(seed)
    clip, base, text = (torch.from_numpy(values) for values in (pairs.clip, pairs.base, pairs.text))
    numbers: dict[str, int] = {}
    labels = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in pairs.captions])
    network = _Network(clip.shape[1])
    batch = min(BATCH, len(clip))
    steps = epochs * (len(clip) // batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    losses: list[float] = []
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(clip))
        losses = []
        for begin in range(0, len(clip) - batch + 1, batch):
            rows = order[begin : begin + batch]
            noisy = clip[rows] + INPUT_NOISE * torch.randn_like(clip[rows])
            scale = network.log_scale.exp().clamp(max=_LARGEST_SCALE)
            loss = contrastive_loss(network(noisy, base[rows]) @ text[rows].T * scale, labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
    return Residual(
        alpha=float(network.alpha.detach()),
        w1=network.first.weight.detach().numpy(),
        b1=network.first.bias.detach().numpy(),
        w2=network.second.weight.detach().numpy(),
        b2=network.second.bias.detach().numpy(),
        loss=float(np.mean(losses)),
    )


def contrastive_loss(similarities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """InfoNCE in both directions over scaled similarities (b, b) of images (rows) and texts (columns).

    Rows with equal labels (b,) share their target evenly, so that no positive is pushed away.
    """
    same = (labels[:, None] == labels[None, :]).float()
    targets = same / same.sum(dim=1, keepdim=True)
    by_image = -(targets * similarities.log_softmax(dim=1)).sum(dim=1).mean()
    by_text = -(targets * similarities.T.log_softmax(dim=1)).sum(dim=1).mean()
    return (by_image + by_text) / 2
