"""How much memory is free, in bytes: on the GPU, or on this computer within what a container may take."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

CGROUP_ROOT = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken on `device` now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), cgroup_free_bytes(own_cgroup(), CGROUP_ROOT))


def own_cgroup(table: Path = Path("/proc/self/cgroup")) -> str:
    """Path of this process's version 2 control group below the mount point, "" if there is none."""
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")


def cgroup_free_bytes(group: str, root: Path) -> int:
    """What the tightest limit on the way from `group` up to `root` leaves; a very large number if nothing limits.

    Reads version 2 (`memory.max`) and the version 1 layout of older Docker hosts. File cache counts as free: the kernel drops it.
    """
    free = 2**62
    folder = root / group
    for place in [folder, *folder.parents][: len(Path(group).parts) + 1]:
        free = min(free, limit_left(place / "memory.max", place / "memory.current", place / "memory.stat", "inactive_file"))
    old = root / "memory"
    return min(free, limit_left(old / "memory.limit_in_bytes", old / "memory.usage_in_bytes", old / "memory.stat", "total_inactive_file"))


def limit_left(limit: Path, usage: Path, statistics: Path, cache_name: str) -> int:
    """Limit minus usage plus droppable cache; a very large number where the files are absent or say "max"."""
    try:
        cache = next((int(line.split()[1]) for line in statistics.read_text().splitlines() if line.split()[:1] == [cache_name]), 0)
        return max(0, int(limit.read_text()) - int(usage.read_text()) + cache)
    except (OSError, ValueError):
        return 2**62
