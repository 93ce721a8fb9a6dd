"""Any open_clip model: with weights from a model hub, or from a local checkpoint file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch

from actors.embedding import encoder as encoding
from actors.embedding.preprocessing import normalise
from actors.messages import EncoderDescription, FloatMatrix, Pixels, PreprocessSpec
from contract.errors import ModelUnavailable, SettingsInvalid
from contract.settings import Settings

_RESIZE: Final = {"shortest": "crop", "longest": "fit", "squash": "squash"}
_MOST_AT_ONCE: Final = 64
_PREPROCESSING_FIELDS: Final = ("mean", "std", "interpolation", "resize_mode")

# Operators declared by _declare_missing_operators live as long as this reference.
_declared: list[torch.library.Library] = []


class OpenClipEncoder:
    """An open_clip model and its own preprocessing.

    Image and text vectors are L2-normalised. The fingerprint covers the parameters, not the file, so
    that the same weights from the hub and from a copied file are the same encoder.
    """

    def __init__(self, settings: Settings, architecture: str, source: str) -> None:
        open_clip = import_open_clip()
        self._device = _device(settings)
        self._model = _load(open_clip, settings, architecture, source).to(self._device).eval()
        self._tokenizer = _tokenizer(open_clip, settings, architecture)
        self._cut_texts = cut_is_exact(self._model)
        preprocess = preprocess_spec(dict(self._model.visual.preprocess_cfg))
        dimension = self._probe_dimension(preprocess)
        weights = [_parameters_sha256(self._model), _architecture_sha256(open_clip, architecture, self._model)]
        self._description = EncoderDescription(
            model=f"openclip:{architecture}:{source}",
            fingerprint=encoding.fingerprint(weights, preprocess, dimension),
            dimension=dimension,
            preprocess=preprocess,
            device=str(self._device),
        )

    @property
    def description(self) -> EncoderDescription:
        """Model, fingerprint, dimension, preprocessing and device."""
        return self._description

    def encode_images(self, pixels: Pixels) -> FloatMatrix:
        """(n, s, s, 3) uint8 → (n, d) float32, L2-normalised."""
        inputs = normalise(pixels, self._description.preprocess)
        batches = [inputs[i : i + _MOST_AT_ONCE] for i in range(0, len(inputs), _MOST_AT_ONCE)]
        return self._run([torch.from_numpy(batch) for batch in batches], self._model.encode_image)

    def encode_texts(self, texts: Sequence[str]) -> FloatMatrix:
        """Texts → (n, d) float32, L2-normalised; what exceeds the model's context is cut off."""
        batches = [list(texts[i : i + _MOST_AT_ONCE]) for i in range(0, len(texts), _MOST_AT_ONCE)]
        return self._run([self._tokenizer(batch) for batch in batches], self._encode_tokens)

    def warm_up(self) -> None:
        """Run one picture and one text through."""
        encoding.warm_up(self)

    def _encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        encoded: torch.Tensor = encode_cut(self._model, tokens) if self._cut_texts else self._model.encode_text(tokens)
        return encoded

    def _run(self, batches: Sequence[torch.Tensor], encode: Any) -> FloatMatrix:
        on_gpu = self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            rows = [encode(batch.to(self._device)).float().cpu().numpy() for batch in batches]
        if not rows:
            return np.zeros((0, self._description.dimension), dtype=np.float32)
        return encoding.l2_normalise(np.concatenate(rows).astype(np.float32))

    def _probe_dimension(self, preprocess: PreprocessSpec) -> int:
        with torch.inference_mode():
            blank = torch.zeros((1, 3, preprocess.size, preprocess.size), device=self._device)
            return int(self._model.encode_image(blank).shape[-1])


def preprocess_spec(config: dict[str, Any]) -> PreprocessSpec:
    """Bring open_clip's preprocessing of a model into ours, to the pixel the same.

    Raises:
        ModelUnavailable: the model takes pictures that are not square.
    """
    size = config["size"]
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(set(sides)) != 1:
        raise ModelUnavailable(f"models with square pictures only; this one takes {sides}")
    mean, std = tuple(map(float, config["mean"])), tuple(map(float, config["std"]))
    return PreprocessSpec(
        size=int(sides[0]),
        resize=_RESIZE[config["resize_mode"]],  # type: ignore[arg-type]
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        padding=0.0,
        background=(int(config["fill_color"]),) * 3,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def cut_is_exact(model: Any) -> bool:
    """Whether a text may be cut to its real length without changing its vector.

    True where attention is causal and the vector is taken at the end-of-text token: what follows that
    token can then not reach it.
    """
    return type(model).__name__ == "CLIP" and model.attn_mask is not None and model.text_pool_type in {"argmax", "eos"}


def encode_cut(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Text features (n, d) of tokens (n, context), run only up to the last end-of-text token.

    Equal to `model.encode_text(tokens)` where `cut_is_exact(model)`; several times cheaper, because a
    search text fills a tenth of the context.
    """
    from open_clip.transformer import text_global_pool  # noqa: PLC0415 - import_open_clip comes first

    ends = (tokens == model.text_eos_id).int() if model.text_pool_type == "eos" else tokens
    length = int(ends.argmax(dim=-1).max()) + 1
    cut = tokens[:, :length]
    dtype = model.transformer.get_cast_dtype()
    hidden = model.token_embedding(cut).to(dtype) + model.positional_embedding[:length].to(dtype)
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    pooled = text_global_pool(hidden, cut, model.text_pool_type, eos_token_id=model.text_eos_id)
    projection = model.text_projection
    if projection is not None:
        pooled = projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
    return torch.as_tensor(pooled)


def import_open_clip() -> ModuleType:
    """Import open_clip, also where torchvision's compiled operators do not fit the installed torch.

    open_clip takes only picture transforms from torchvision. A CPU build of torch has no matching
    torchvision, whose import then fails because operators that nobody here calls are missing.
    """
    try:
        import open_clip  # noqa: PLC0415
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        _declare_missing_operators()
        import open_clip  # noqa: PLC0415
    return open_clip  # type: ignore[no-any-return]


def _declare_missing_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    for module in [name for name in sys.modules if name.partition(".")[0] in {"torchvision", "open_clip", "timm"}]:
        del sys.modules[module]


def _device(settings: Settings) -> torch.device:
    if settings.device == "cpu" or (settings.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SettingsInvalid("device is cuda, but torch finds no CUDA device here")
    return torch.device("cuda")


def _load(open_clip: Any, settings: Settings, architecture: str, source: str) -> Any:
    if open_clip.get_model_config(architecture) is None:
        raise SettingsInvalid(f"open_clip knows no architecture {architecture!r}")
    overrides, quick_gelu = None, False
    if "/" in source:
        if not Path(source).is_file():
            raise ModelUnavailable(f"there is no checkpoint file {source}")
        overrides = _preprocessing_of_architecture(open_clip, architecture)
    else:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if source not in tags:
            raise SettingsInvalid(
                f"open_clip knows no weights {source!r} of {architecture}; it knows {', '.join(tags)}"
            )
    try:
        return open_clip.create_model(
            architecture,
            pretrained=source,
            force_preprocess_cfg=overrides,
            force_quick_gelu=quick_gelu,
            cache_dir=str(settings.cache_path / "open_clip"),
            require_pretrained=True,
        )
    # Hub clients, torch and pickle each raise errors of their own.
    except Exception as error:
        raise ModelUnavailable(f"the weights {source} of {architecture} cannot be loaded: {error}") from error


def _preprocessing_of_architecture(open_clip: Any, architecture: str) -> dict[str, Any] | None:
    """Preprocessing that all published weights of an architecture share; a file itself names none."""
    known = [
        {
            name: value
            for name, value in open_clip.get_pretrained_cfg(architecture, tag).items()
            if name in _PREPROCESSING_FIELDS and value
        }
        for tag in open_clip.list_pretrained_tags_by_model(architecture)
    ]
    return known[0] if known and all(one == known[0] for one in known) else None


def _tokenizer(open_clip: Any, settings: Settings, architecture: str) -> Any:
    try:
        return open_clip.get_tokenizer(architecture, cache_dir=str(settings.cache_path / "open_clip"))
    except Exception as error:
        raise ModelUnavailable(f"the tokenizer of {architecture} cannot be loaded: {error}") from error


def _parameters_sha256(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _architecture_sha256(open_clip: Any, architecture: str, model: Any) -> str:
    quick_gelu = any(type(module).__name__ == "QuickGELU" for module in model.modules())
    config = {"config": open_clip.get_model_config(architecture), "quick_gelu": quick_gelu}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
