"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: the command line, a client of the HTTP API.
"""

from __future__ import annotations

import sys

from serving.cli.app import app
from serving.cli.output import report_failure

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; an expected failure is one line and status 1, never a traceback."""
    try:
        app()
    except Exception as error:
        message = report_failure(error)
        if message is None:
            raise
        sys.exit(1)
