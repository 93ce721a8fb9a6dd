"""The client that the command line calls the server with."""

from __future__ import annotations

from typing import Any

from contract.settings import Settings
from serving.client import Client


def connect(settings: Settings, url: str | None = None, **options: Any) -> Client:
    """A client of the server that `url` or else the settings name, with their key and authority.

    Raises ValueError for an address that is none. `options` are those of the client.
    """
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    return Client(url or settings.base_url, api_key=key, tls_ca=settings.http_tls_ca, **options)
