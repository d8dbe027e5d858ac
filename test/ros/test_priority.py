"""Niceness and SCHED_FIFO, as the kernel tells them afterwards; each in a process of its own."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from openvla_ros.ros.priority import AUTOGROUP, AUTOGROUP_SWITCH

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="niceness and scheduling of threads are Linux's")

PR_CAPBSET_DROP, CAP_SYS_NICE = 24, 23  # linux/prctl.h, linux/capability.h

THREADS = """
import os, threading
from openvla_ros.ros.priority import be_nice, be_on_time, let_other_sessions_first, niceness, threads
ready, leave, ids = threading.Barrier(4), threading.Event(), []
def wait():
    ids.append(threading.get_native_id()); ready.wait(); leave.wait()
def start(count):
    for _ in range(count): threading.Thread(target=wait, daemon=True).start()
start(3); ready.wait()
"""


def without_permission() -> None:
    """In the child, before it becomes Python: no capability, and no limit that permits what it would."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0)
    for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
        resource.setrlimit(limit, (0, 0))


def run(code: str, environment: dict[str, str], before: Callable[[], None] | None = None, session: bool = False) -> str:
    done = subprocess.run([sys.executable, "-c", THREADS + code], env=environment, capture_output=True, text=True, timeout=120,
                          preexec_fn=before, start_new_session=session)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_thread_becomes_nice_and_those_that_come_later_too(clean_environment: dict[str, str]) -> None:
    said = run("""
before = niceness()
be_nice(before + 3)
start(3); ready.wait()
print(before, sorted(os.getpriority(os.PRIO_PROCESS, thread) for thread in [*ids, *threads()]))
""", clean_environment)
    before, _, found = said.partition(" ")
    assert set(map(int, found.strip(" []\n").split(", "))) == {min(19, int(before) + 3)}


def test_less_nice_than_before_is_left_undone_where_it_is_not_permitted(clean_environment: dict[str, str]) -> None:
    said = run("before = niceness(); be_nice(before + 3); be_nice(before); print(before, niceness())", clean_environment,
               without_permission)
    before, after = map(int, said.split())
    assert after == min(19, before + 3)


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel shares no time by session")
def test_a_session_of_its_own_steps_back_behind_other_sessions(clean_environment: dict[str, str]) -> None:
    code = "let_other_sessions_first(7); let_other_sessions_first(3); print(open('/proc/self/autogroup').read())"
    switched_on = AUTOGROUP_SWITCH.read_text().strip() == "1"
    assert run(code, clean_environment, session=True).split()[-1] == ("7" if switched_on else "0")
    ours = AUTOGROUP.read_text().split()  # nothing for what was started before the first session, as the first process of a container
    assert run(code, clean_environment).split() == ours, "a session that is shared with others is left as it is"


def test_only_the_thread_that_asks_is_real_time_and_what_it_starts_is_not(clean_environment: dict[str, str]) -> None:
    said = run("""
print(be_on_time(5))
start(3); ready.wait()
policy = lambda thread: os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK
print(policy(0) == os.SCHED_FIFO, os.sched_getparam(0).sched_priority, {policy(thread) for thread in ids} == {os.SCHED_OTHER})
""", clean_environment)
    scheduling, kernel = said.splitlines()
    assert kernel == ("True 5 True" if scheduling == "SCHED_FIFO 5" else "False 0 True")
    assert scheduling == "SCHED_FIFO 5" or scheduling.startswith("normal: SCHED_FIFO 5 ")


def test_without_permission_it_stays_normal_and_says_how_to_get_it(clean_environment: dict[str, str]) -> None:
    said = run("print(be_on_time(5)); print(os.sched_getscheduler(0) == os.SCHED_OTHER)", clean_environment, without_permission)
    scheduling, normal = said.splitlines()
    assert normal == "True"
    assert scheduling.startswith("normal: SCHED_FIFO 5 ") and "ulimit -r 5" in scheduling and "not permitted" in scheduling


def test_nothing_is_asked_for_with_priority_0(clean_environment: dict[str, str]) -> None:
    assert run("print(be_on_time(0), os.sched_getscheduler(0) == os.SCHED_OTHER)", clean_environment).split() == ["normal", "True"]
