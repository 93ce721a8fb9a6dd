"""The name under which the ingest workers share the partitions of image-events."""

from __future__ import annotations

INGEST_GROUP = "riverlens-ingest"
