"""What the kernel is asked for: niceness for a process that may wait, SCHED_FIFO for a thread that must be in time. No ROS in here.

Nothing here refuses. Whoever asks in vain works on without, and says in diagnostics what holds.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MOST_NICE = 19

HIGHEST_REALTIME = 49
"""Interrupt threads of a kernel with PREEMPT_RT have 50: a node above them would starve the network that it listens to."""

AUTOGROUP = Path("/proc/self/autogroup")
AUTOGROUP_SWITCH = Path("/proc/sys/kernel/sched_autogroup_enabled")


def niceness() -> int:
    """Of the calling thread: of the whole process, as long as nobody treats its threads unlike."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def be_nice(value: int) -> None:
    """Give every thread of this process this niceness; threads that they start later inherit it.

    Less than before needs CAP_SYS_NICE and is left undone without it; `niceness` tells.
    """
    value = max(0, min(MOST_NICE, value))
    for _ in range(2):  # a thread that was started during the first round by one that was not nice yet
        for thread in threads():
            with suppress(OSError):  # not permitted, or ended meanwhile
                os.setpriority(os.PRIO_PROCESS, thread, value)


def let_other_sessions_first(value: int) -> None:
    """Give this process's session a niceness among sessions, if the session is its alone and the kernel shares time by session.

    With autogroups (sched(7); the rule on desktops) niceness counts only within a session, and a process that was started in a session of
    its own, as `openvla-ros run` does, would take half of the time from another, however nice it is.
    """
    with suppress(OSError, ValueError, IndexError):  # another kind of system, or a container that may not
        if os.getsid(0) == os.getpid() and AUTOGROUP_SWITCH.read_text().strip() == "1":
            now = int(AUTOGROUP.read_text().split()[-1])  # "/autogroup-25 nice 0"
            if 0 <= now < value:
                AUTOGROUP.write_text(str(min(MOST_NICE, value)))


def be_on_time(priority: int) -> str:
    """Ask for SCHED_FIFO for the calling thread alone, and say what holds then: "SCHED_FIFO 10", or "normal" and why.

    priority: 1 to HIGHEST_REALTIME; 0 asks for nothing. Threads that the calling one starts later are normal again.
    """
    if not priority:
        return "normal"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except (AttributeError, OSError) as error:
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else "not on this system"
        return f"normal: SCHED_FIFO {priority} {reason}; 'ulimit -r {priority}' or CAP_SYS_NICE permits it"
    return f"SCHED_FIFO {priority}"


def threads() -> list[int]:
    """Kernel ids of the threads of this process; only the calling one's where the system does not list them."""
    try:
        return [int(path.name) for path in Path("/proc/self/task").iterdir()]
    except OSError:
        return [0]
