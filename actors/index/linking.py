"""A second name for a file that never changes, or a copy where there can be none."""

from __future__ import annotations

import shutil
from pathlib import Path


def link(source: Path, path: Path) -> None:
    """Make `path` the same file as `source`; a copy on another file system, or one without hard links.

    A copy is not yet on the disk. Raises OSError.
    """
    try:
        path.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, path)
