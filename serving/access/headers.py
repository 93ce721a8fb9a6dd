"""Headers that every answer has, unless its route says something else."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders

# What is shown as a page says more in `serving.routes_system`; everything else is no page and loads nothing.
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_API = "/v1/"
# Source: RFC 6797; one year. Sent over TLS only, where alone it counts.
_STRICT_TRANSPORT = "max-age=31536000"


def add_headers(headers: MutableHeaders, path: str, scheme: str) -> None:
    """Add what is missing. Answers about images are kept by nobody on the way: another key sees other ones."""
    for name, value in _ALWAYS.items():
        headers.setdefault(name, value)
    if path.startswith(_API):
        headers.setdefault("Cache-Control", "no-store")
    if scheme == "https":
        headers.setdefault("Strict-Transport-Security", _STRICT_TRANSPORT)
