"""The guard of a tethered process (`tether.py`), run by its path with no site and no package: it takes 10 ms to start.

`python -I -S guard.py NODE_PID PARENT_FD GRACE_S`. PARENT_FD is readable once the parent is dead. The kernel ends the guard with the node.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time


def main() -> None:
    """Wait for the parent's death, then as long as the node may take to leave, then kill it."""
    node_pid, parent, grace_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they may be sent to the whole group, and are for the node
    death = select.poll()
    death.register(parent, select.POLLIN)
    death.poll()
    time.sleep(grace_s)
    os.kill(node_pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
