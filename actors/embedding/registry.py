"""From the name of a model to an encoder that is ready to run."""

from __future__ import annotations

import structlog

from actors.embedding.encoder import Encoder
from contract.errors import ModelUnavailable, SettingsInvalid
from contract.settings import Settings
from contract.telemetry import LogField

_log = structlog.get_logger()

OPENCLIP_PREFIX = "openclip:"


def load_encoder(settings: Settings, model: str) -> Encoder:
    """Load an encoder by its name.

    `offline` is the default model; where its CLIP weights cannot be had, `offline-conse` takes its
    place with one warning, and the description names the model that really runs. `openclip:ARCH:TAG`
    is any open_clip model with hub weights; in `openclip:ARCH:/path` the weights are a local file.

    Bounds the threads of torch in this process by `settings.embedder_threads`.

    Raises:
        SettingsInvalid: the name is none of these.
        ModelUnavailable: the weights cannot be had.
    """
    # The heavy libraries are imported here, so that a process that only names models stays light.
    import torch  # noqa: PLC0415

    torch.set_num_threads(settings.embedder_threads)
    if model.startswith(OPENCLIP_PREFIX):
        architecture, _, source = model.removeprefix(OPENCLIP_PREFIX).partition(":")
        if not architecture or not source:
            raise SettingsInvalid(f"model {model!r} must be openclip:ARCHITECTURE:TAG or openclip:ARCHITECTURE:/FILE")
        from actors.embedding.openclip import OpenClipEncoder  # noqa: PLC0415

        return OpenClipEncoder(settings, architecture, source)
    if model not in {"offline", "offline-conse"}:
        raise SettingsInvalid(f"model {model!r} is none of offline, offline-conse, openclip:ARCHITECTURE:TAG-OR-FILE")
    from actors.embedding.offline import ConseEncoder, OfflineEncoder  # noqa: PLC0415

    if model == "offline-conse":
        return ConseEncoder(settings)
    try:
        return OfflineEncoder(settings)
    except ModelUnavailable as error:
        _log.warning("the model offline cannot be had; offline-conse takes its place", **{LogField.ERROR: error.detail})
        return ConseEncoder(settings)
