"""Which scope a request needs, by its method and path. What is not listed needs `admin`."""

from __future__ import annotations

import re

from contract.keys import Scope

# Static pages and the description of the API, and what a load balancer asks: they tell nothing of any image.
OPEN: frozenset[str] = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
_OPEN_BELOW = "/web/"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_COLLECTION = re.compile(r"/v1/collections/[^/]*")
_SEARCHES = re.compile(r"/v1/collections/[^/]+/(search|search/batch|clicks)")
_IMAGES = re.compile(r"/v1/collections/[^/]+/images(/.*)?")


def scope_of(method: str, path: str) -> Scope | None:
    """The scope that a request needs; None where no key is needed."""
    if path in OPEN or path.startswith(_OPEN_BELOW):
        return None
    if _SEARCHES.fullmatch(path):
        return "read"
    if _IMAGES.fullmatch(path):
        return "read" if method in _READING else "write"
    is_readable = path in ("/v1/collections", "/metrics") or _COLLECTION.fullmatch(path)
    return "read" if is_readable and method in _READING else "admin"
