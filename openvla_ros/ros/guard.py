"""The guard of a tethered process (`tether.py`), run by its path with no site and no package: it takes 10 ms to start.

`python -I -S guard.py NODE_FD PARENT_FD GRACE_S`. The descriptors are pidfds, readable once node or parent is dead.
"""

from __future__ import annotations

import select
import signal
import sys


def main() -> None:
    """Wait for the parent's death, then as long as the node may take to leave, then kill it. Leaves with the node."""
    node, parent, grace_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they may be sent to the whole group, and are for the node
    if not is_dead(node, among=(node, parent)) and not is_dead(node, among=(node,), within_s=grace_s):
        signal.pidfd_send_signal(node, signal.SIGKILL)


def is_dead(node: int, among: tuple[int, ...], within_s: float | None = None) -> bool:
    """Wait until one of the processes is dead, or so long; then whether the node is."""
    return node in select.select(among, (), (), within_s)[0]


if __name__ == "__main__":
    main()
