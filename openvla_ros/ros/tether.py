"""Run one entry point in a process that does not outlive its parent, however the parent ended.

`python -m openvla_ros.ros.tether PARENT_PID module:function [arguments...]`. When the parent dies, even by SIGKILL, the
kernel sends this process SIGTERM: a node then says its last word (zeros, stop) and leaves within its grace.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from importlib import import_module

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tie_to(parent_pid: int) -> None:
    """Ask the kernel for SIGTERM at the parent's death; leave at once when it is dead already. Linux only, else no effect."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent_pid:  # it died between our start and the line above: the kernel will not say so any more
        sys.exit(1)


def main() -> None:
    """Tie, then become the entry point: same process, its own arguments, its exit code."""
    parent_pid, entry = int(sys.argv[1]), sys.argv[2]
    tie_to(parent_pid)
    module, function = entry.split(":")
    sys.argv = [function if function != "main" else module.rpartition(".")[2], *sys.argv[3:]]
    sys.exit(getattr(import_module(module), function)())


if __name__ == "__main__":
    main()
