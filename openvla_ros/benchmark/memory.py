"""How much memory a piece of work takes at its worst moment, and how fast a disk gives files."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil
import torch

EVERY_S = 0.005
"""How often memory is looked at: an allocation that is filled lives longer."""

READ_BYTES = 4 * 1024**3
"""Of a checkpoint's files, at most, to measure the disk by."""


@dataclass(frozen=True)
class Taken:
    """Bytes of this process, without files that are only mapped: before, at the worst moment, afterwards; and the same on the GPU."""

    before: int
    peak: int
    after: int
    gpu_before: int = 0
    gpu_peak: int = 0
    gpu_after: int = 0
    seconds: float = 0.0

    @property
    def over_bytes(self) -> int:
        """What the worst moment took more than what stayed, host and GPU together."""
        return self.peak - self.after + self.gpu_peak - self.gpu_after

    @property
    def kept_bytes(self) -> int:
        """What stayed, host and GPU together."""
        return self.after - self.before + self.gpu_after - self.gpu_before


class MemoryWatch:
    """`with MemoryWatch(device) as watch: ...`, then `watch.taken`."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.taken = device, Taken(0, 0, 0)

    def __enter__(self) -> MemoryWatch:
        self._before, self._gpu_before = own_bytes(), gpu_bytes(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._peak, self._done = self._before, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._begun_s = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        seconds = time.perf_counter() - self._begun_s
        self._done.set()
        self._thread.join()
        after = own_bytes()
        gpu_peak = int(torch.cuda.max_memory_allocated(self.device)) if self.device.type == "cuda" else 0
        self.taken = Taken(self._before, max(self._peak, after), after, self._gpu_before, gpu_peak, gpu_bytes(self.device), seconds)

    def _look(self) -> None:
        while not self._done.wait(EVERY_S):
            self._peak = max(self._peak, own_bytes())


def own_bytes() -> int:
    """Resident memory of this process that is no mapped file, where the system says so (Linux); else all of it."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return int(psutil.Process().memory_info().rss)


def gpu_bytes(device: torch.device) -> int:
    """Taken by tensors now."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0


def disk_bytes_per_s(files: Iterable[Path]) -> float:
    """Rate at which files come from the disk, READ_BYTES at most; what the system keeps of them in memory is given up first and after."""
    files, read, begun_s = list(files), 0, time.perf_counter()
    forget(files)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while read < READ_BYTES and (piece := file.read(16 * 1024**2)):
                read += len(piece)
    rate = read / max(1e-9, time.perf_counter() - begun_s)
    forget(files)
    return rate


def forget(files: Iterable[Path]) -> None:
    """Ask the system to drop what it keeps of these files in memory, where it takes such wishes (Linux)."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
