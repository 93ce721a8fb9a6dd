"""What a process and its children use of memory, processor and disk. Linux; needs nothing."""

from __future__ import annotations

import ctypes
import gc
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Resident bytes: all, those of anonymous memory, and those of mapped files.

    Of one process: the whole of every page (Rss). Of a process with children: each page divided by
    who shares it (Pss), so that shared buffers count once.
    """

    resident: int
    anonymous: int
    file_backed: int


def settle() -> None:
    """Give back what is free: Python's garbage, and the allocator's free pages."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        found.append(one := queue.pop())
        queue += parents.get(one, [])
    return found


def memory(pid: int) -> Memory:
    """Resident bytes of a process and its descendants."""
    members = family(pid)
    alone = len(members) == 1
    total = dict.fromkeys(("Rss", "Pss", "Pss_Anon", "Anonymous"), 0)
    for member in members:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        for line in lines:
            name, _, value = line.partition(":")
            if name in total:
                total[name] += int(value.split()[0]) * 1024
    resident, anonymous = (total["Rss"], total["Anonymous"]) if alone else (total["Pss"], total["Pss_Anon"])
    return Memory(resident, anonymous, resident - anonymous)


def cpu_seconds(pid: int) -> float:
    """Processor seconds that a process and its living descendants have used."""
    ticks = sum(int(fields[11]) + int(fields[12]) for one in family(pid) if (fields := _stat(one)))
    return ticks / os.sysconf("SC_CLK_TCK")


def disk_bytes(folder: Path) -> int:
    """Bytes that the files of a folder occupy; files with several names count once, sparse parts not at all."""
    blocks = {}
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                stat = path.stat()
                blocks[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
        except FileNotFoundError:
            continue  # stores retire files at any time
    return sum(blocks.values())


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; nothing of a process that ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
