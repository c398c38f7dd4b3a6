"""Free room on this machine: main memory and disks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

GIB = 1024**3


def memory_limit() -> int | None:
    """The container's limit of main memory in bytes. Returns None if there is none."""
    return _cgroup("memory.max", "memory/memory.limit_in_bytes")


def free_memory() -> int:
    """Bytes of main memory that new processes can use, within the container's limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass  # not Linux
    limit, used = memory_limit(), _cgroup("memory.current", "memory/memory.usage_in_bytes")
    return free if limit is None or used is None else max(0, min(free, limit - used))


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is or would be created."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _cgroup(*names: str) -> int | None:
    for name in names:
        try:
            return int(Path("/sys/fs/cgroup", name).read_text())
        except (OSError, ValueError):
            continue  # not a container, or `max`: no limit
    return None
