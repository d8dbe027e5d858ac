"""Every process of ours ends, whatever hangs in it, and however its parent ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ros

DEADLINE_S = 20.0

HANGS = """
import threading
import rclpy
from rclpy.node import Node
from openvla_ros.ros.lifetime import live

class Hanging(Node):
    def __init__(self):
        super().__init__("hanging")
        self.finished = threading.Event()
        self.create_timer(0.1, lambda: print("lives", flush=True))

    def farewell(self):
        print("leaves", flush=True)
        threading.Event().wait()

raise SystemExit(live(Hanging, leave_within_s=0.5))
"""

STUCK = """
import ctypes, os, signal, subprocess, sys, time
child = '''
import ctypes, os, signal, sys
from openvla_ros.ros.tether import tie_to
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
tie_to(int(sys.argv[1]), grace_s=0.5)
print(os.getpid(), flush=True)
if sys.argv[2] == "deaf":
    while True:
        signal.pause()
while True:
    ctypes.PyDLL(None).sleep(60)  # holds the interpreter lock, as rclpy does while it publishes; a signal ends it once
'''
subprocess.Popen([sys.executable, "-c", child, str(os.getpid()), sys.argv[1]])
time.sleep(60)
"""


class Family:
    """A parent, and the child that is tied to it."""

    def __init__(self, environment: dict[str, str], how: str) -> None:
        self.parent = subprocess.Popen([sys.executable, "-c", STUCK, how], env=environment, stdout=subprocess.PIPE, text=True)
        assert self.parent.stdout is not None
        self.child = psutil.Process(int(self.parent.stdout.readline()))
        self.guards: list[psutil.Process] = []

    def until_guarded(self) -> None:
        end = time.monotonic() + DEADLINE_S
        while not self.guards:
            assert time.monotonic() < end
            time.sleep(0.02)
            self.guards = [each for each in self.child.children() if "guard.py" in " ".join(each.cmdline())]

    def end(self) -> None:
        for process in (*self.guards, self.child):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.parent.kill()
        self.parent.communicate(timeout=DEADLINE_S)


@pytest.fixture
def family(ros_environment: dict[str, str]) -> Iterator[Callable[[str], Family]]:
    made: list[Family] = []

    def start(how: str) -> Family:
        made.append(Family(ros_environment, how))
        made[-1].until_guarded()
        return made[-1]

    yield start
    for one in made:
        one.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_hangs_while_leaving_ends_and_says_where(ros_environment: dict[str, str], number: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", HANGS], env=ros_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "lives\n"
        process.send_signal(number)
        said, trace = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 1 and "leaves\n" in said
        assert "in farewell" in trace and "in wait" in trace
    finally:
        process.kill()


@pytest.mark.parametrize("how", ["deaf", "stuck"])
def test_one_that_cannot_leave_does_not_outlive_a_killed_parent(family: Callable[[str], Family], how: str) -> None:
    one = family(how)
    killed_s = time.monotonic()
    one.parent.kill()
    alive = psutil.wait_procs([one.child, *one.guards], timeout=5.0)[1]
    assert not alive and time.monotonic() - killed_s > 0.4, "its grace is its own"
    assert one.parent.stdout is not None
    assert one.parent.stdout.readline() == "heard\n", "asked politely first"


def test_one_whose_parent_lives_is_left_alone_and_its_guard_ends_with_it(family: Callable[[str], Family]) -> None:
    one = family("deaf")
    time.sleep(1.0)
    assert all(each.status() != psutil.STATUS_ZOMBIE for each in (one.child, *one.guards))
    one.child.kill()
    assert not psutil.wait_procs(one.guards, timeout=DEADLINE_S)[1]


def test_one_that_was_born_after_its_parent_died_leaves(ros_environment: dict[str, str]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = f"from openvla_ros.ros.tether import tie_to; tie_to({gone.pid}); print('lives')"
    orphan = subprocess.run([sys.executable, "-c", code], env=ros_environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (orphan.returncode, orphan.stdout) == (1, "")


def test_without_a_guard_the_kernel_still_asks_to_leave(ros_environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text("""
import os, subprocess, sys
child = "import os; del os.pidfd_open; from openvla_ros.ros import tether; tether.tie_to(os.getppid()); print(os.getpid(), flush=True); " \
        "import time; time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child]).wait()
""")
    parent = subprocess.Popen([sys.executable, str(script)], env=ros_environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    try:
        assert child.children() == []
        parent.kill()
        child.wait(DEADLINE_S)
    finally:
        with suppress(psutil.NoSuchProcess):
            child.kill()
        parent.communicate(timeout=DEADLINE_S)
