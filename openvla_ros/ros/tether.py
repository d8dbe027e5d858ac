"""Run one entry point in a process that does not outlive its parent, however the parent ended.

`python -m openvla_ros.ros.tether PARENT_PID module:function [arguments...]`. When the parent dies, even by SIGKILL, the
kernel sends this process SIGTERM: a node then says its last word (zeros, stop) and leaves within its grace. One that does
not is ended by a guard, a small process of its own: a node that is stuck in the middleware holds Python's interpreter lock,
and nothing that is written in Python runs in it any more.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from openvla_ros.ros.processes import STOP_GRACE_S

PR_SET_PDEATHSIG = 1  # linux/prctl.h

GUARD = Path(__file__).with_name("guard.py")


def tie_to(parent_pid: int, grace_s: float = STOP_GRACE_S) -> None:
    """Let the kernel send SIGTERM at the parent's death, and a guard SIGKILL grace_s later.

    Leaves at once when the parent is dead already. Linux only, else no effect; without a guard where the system has no pidfd (Linux
    before 5.3) or forbids it. To be called before there are threads.
    """
    if sys.platform != "linux":
        return
    ask_for_sigterm()
    try:
        pidfds = os.pidfd_open(os.getpid()), os.pidfd_open(parent_pid)
    except (AttributeError, OSError):
        pidfds = None
    if os.getppid() != parent_pid:  # it died between our start and the lines above: the kernel will not say so any more
        sys.exit(1)
    if pidfds is not None:
        guard(*pidfds, grace_s)


def guard(node: int, parent: int, grace_s: float) -> None:
    """Start what kills the node grace_s after its parent's death. node, parent: pidfds, closed here. A word to stderr where it cannot."""
    try:
        pid = os.fork()
    except OSError as error:
        print(f"no guard: {error}. Should this process hang when its parent is killed, it stays.", file=sys.stderr)
        pid = -1
    if pid != 0:
        os.close(node)
        os.close(parent)
        return
    try:
        os.set_inheritable(node, True)
        os.set_inheritable(parent, True)
        os.execv(sys.executable, [sys.executable, "-I", "-S", str(GUARD), str(node), str(parent), str(grace_s)])
    except BaseException as error:
        os.write(2, f"no guard: {error}\n".encode())
    finally:
        os._exit(1)


def ask_for_sigterm() -> None:
    """From the kernel, at the death of the process that started this one. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}")


def main() -> None:
    """Tie, then become the entry point: same process, its own arguments, its exit code."""
    parent_pid, entry = int(sys.argv[1]), sys.argv[2]
    tie_to(parent_pid)
    module, function = entry.split(":")
    sys.argv = [function if function != "main" else module.rpartition(".")[2], *sys.argv[3:]]
    sys.exit(getattr(import_module(module), function)())


if __name__ == "__main__":
    main()
