"""What a process takes of its machine or container, and what is left there."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from actors.messages import MachineState

_CGROUP = Path("/sys/fs/cgroup")


def machine_state(folder: Path, cgroup: Path = _CGROUP) -> MachineState:
    """Memory of this process and around it, and the disk under `folder`, which need not exist yet.

    A container's memory limit counts where it is lower than the machine's memory (cgroup v2; others show the machine).
    """
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limited = _limited(cgroup)
    if limited is not None and limited[0] < total:
        total, available = limited[0], min(limited[1], available)
    disk = shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists()))
    return MachineState(
        resident_bytes=psutil.Process().memory_info().rss,
        memory_bytes=total,
        memory_available_bytes=available,
        disk_bytes=disk.total,
        disk_free_bytes=disk.free,
    )


def _limited(cgroup: Path) -> tuple[int, int] | None:
    """Limit of a container, and what is left below it; None without one.

    File pages that the kernel may drop count as left. Source: the working set of cAdvisor, by which Kubernetes evicts.
    """
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except OSError:
        return None
    if limit == "max":
        return None
    droppable = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return int(limit), max(0, int(limit) - max(0, used - droppable))
