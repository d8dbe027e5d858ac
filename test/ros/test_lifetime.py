"""Every process of ours ends, whatever hangs in it, and however its parent ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

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

DEAF = """
import os, signal, subprocess, sys, time
child = '''
import os, signal, sys, time
from openvla_ros.ros.tether import tie_to
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
tie_to(int(sys.argv[1]), grace_s=0.5)
print(os.getpid(), flush=True)
while True:
    time.sleep(0.1)
'''
subprocess.Popen([sys.executable, "-c", child, str(os.getpid())])
time.sleep(60)
"""


@pytest.fixture
def parent(ros_environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", DEAF], env=ros_environment, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_hangs_while_leaving_ends_and_says_where(ros_environment: dict[str, str], number: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", HANGS], env=ros_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    assert process.stdout is not None and process.stdout.readline() == "lives\n"
    process.send_signal(number)
    said, trace = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1 and "leaves\n" in said
    assert "in farewell" in trace and "in wait" in trace


def test_one_that_is_deaf_does_not_outlive_a_killed_parent(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    killed_s = time.monotonic()
    assert parent.stdout.readline() == "heard\n"  # asked politely first
    child.wait(DEADLINE_S)
    assert time.monotonic() - killed_s > 0.4


def test_one_whose_parent_lives_is_left_alone(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(1.0)
    assert child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    os.kill(child.pid, signal.SIGKILL)


def test_one_that_was_born_after_its_parent_died_leaves(ros_environment: dict[str, str]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = f"from openvla_ros.ros.tether import tie_to; tie_to({gone.pid}); print('lives')"
    orphan = subprocess.run([sys.executable, "-c", code], env=ros_environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (orphan.returncode, orphan.stdout) == (1, "")
