"""Run one entry point in a process that does not outlive its parent, however the parent ended.

`python -m openvla_ros.ros.tether PARENT_PID module:function [arguments...]`. When the parent dies, even by SIGKILL, the
kernel sends this process SIGTERM: a node then says its last word (zeros, stop) and leaves within its grace. One that does
not is ended here, as its parent would have done.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import select
import signal
import sys
import time
from importlib import import_module

from openvla_ros.ros.processes import STOP_GRACE_S

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tie_to(parent_pid: int, grace_s: float = STOP_GRACE_S) -> None:
    """Ask the kernel for SIGTERM at the parent's death, and SIGKILL ourselves when that did not end us within grace_s.

    Leaves at once when the parent is dead already. Linux only, else no effect.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    try:
        parent = os.pidfd_open(parent_pid)
    except ProcessLookupError:
        sys.exit(1)
    if os.getppid() != parent_pid:  # it died between our start and the lines above: the kernel will not say so any more
        sys.exit(1)
    _thread.start_new_thread(_outlive_not, (parent, grace_s))  # unseen by `threading`: nobody waits for it, nor hurries because of it


def _outlive_not(parent: int, grace_s: float) -> None:
    """parent: its file descriptor, readable once it is dead."""
    dead = select.poll()
    dead.register(parent, select.POLLIN)
    dead.poll()
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Tie, then become the entry point: same process, its own arguments, its exit code."""
    parent_pid, entry = int(sys.argv[1]), sys.argv[2]
    tie_to(parent_pid)
    module, function = entry.split(":")
    sys.argv = [function if function != "main" else module.rpartition(".")[2], *sys.argv[3:]]
    sys.exit(getattr(import_module(module), function)())


if __name__ == "__main__":
    main()
