"""Several processes that train one network together, on the cores of one computer. If one of them dies, all of them end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

import torch
from torch import distributed, multiprocessing

PATIENCE = timedelta(minutes=30)
"""How long one waits for another that simulates, renders or evaluates more slowly."""


@contextmanager
def worker_group(folder: Path, workers: int, work: Callable[..., object], *arguments: Any) -> Iterator[None]:
    """Run `work(worker, *arguments)` for workers 1, 2, ... in processes of their own while the caller does the same as worker 0.

    One thread each: on a computer that does other things too, waiting threads cost more than they bring.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".meeting-*"):
        left_over.unlink()
    meeting = folder / f".meeting-{os.getpid()}"
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=help_out, args=(meeting, worker, workers, work, arguments), daemon=True)
              for worker in range(1, workers)]
    try:
        for process in others:
            process.start()
        join_group(meeting, 0, workers)
        yield
        for process in others:
            process.join()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for process in others:
            process.terminate()
        meeting.unlink(missing_ok=True)


def help_out(meeting: Path, worker: int, workers: int, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Body of the other processes."""
    Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    join_group(meeting, worker, workers)
    work(worker, *arguments)


def join_group(meeting: Path, worker: int, workers: int) -> None:
    """Meet the others at a file; nothing is opened to the network."""
    if workers > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        distributed.init_process_group("gloo", init_method=f"file://{meeting.resolve()}", rank=worker, world_size=workers, timeout=PATIENCE)


def wait_for_all() -> None:
    """Until every process is here."""
    if distributed.is_initialized():
        distributed.barrier()


def total(values: list[float]) -> list[float]:
    """Sum of each number over the processes."""
    if not distributed.is_initialized():
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(sums)
    return [float(value) for value in sums]


def end_with(parent: int) -> None:
    """End this process when `parent`, which started it, is gone: killed processes cannot say goodbye to their children."""
    while os.getppid() == parent:
        sleep(0.5)
    os._exit(1)
