"""What the API promises of thumbnails."""

from __future__ import annotations

THUMBNAIL_SIZES = (64, 128, 256, 512, 1024)
THUMBNAIL_TYPE = "image/webp"
