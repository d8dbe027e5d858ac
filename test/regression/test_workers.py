"""Many recordings in several processes: the same results, in order; what dies takes only its own recording with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.regression.job import FAILED, GOOD, Job, Result
from openvla_ros.regression.workers import run_all, unnamed_twice

Make = Callable[..., Job]
DEADLINE_S = 60.0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.02)


def test_processes_give_what_one_process_gives_and_bad_input_stops_nobody(job: Make, tiny: PolicySettings, tmp_path: Path) -> None:
    jobs = [job(name="scripted"), job(name="absent", bag=tmp_path / "nowhere"), job(name="tiny", policy=tiny),
            job(name="nothing", policy=PolicySettings("no such checkpoint")), job(name="limited", limit=2)]
    seen: list[str] = []
    here, apart = run_all(jobs), run_all(jobs, workers=2, on_result=lambda result: seen.append(result.name))
    assert [result.name for result in here] == [result.name for result in apart] == [each.name for each in jobs]
    assert sorted(seen) == sorted(each.name for each in jobs)
    assert [result.status for result in apart] == [GOOD, FAILED, GOOD, FAILED, GOOD]
    for one, other in zip(here, apart, strict=True):
        assert (one.status, one.error) == (other.status, other.error)
        assert (one.replay is None) == (other.replay is None)
        if one.replay is not None and other.replay is not None:
            assert one.replay.digest == other.replay.digest
    assert "there is no recording at" in apart[1].error and "no such checkpoint" in apart[3].error


def test_a_killed_worker_loses_its_own_recording_only(job: Make, tmp_path: Path) -> None:
    """A recording that is a pipe without a writer holds its worker for ever, so it is known what the worker was at when it died."""
    pipes = [tmp_path / f"{number}.mcap" for number in (1, 2)]
    for pipe in pipes:
        os.mkfifo(pipe)
    jobs = [job(name="first pipe", bag=pipes[0]), job(name="second pipe", bag=pipes[1]), job(name="one"), job(name="two")]
    seen: list[Result] = []
    found: list[list[Result]] = []
    before = set(multiprocessing.active_children())
    runner = threading.Thread(target=lambda: found.append(run_all(jobs, 2, seen.append)))
    runner.start()

    def ours() -> list[int]:
        return [child.pid for child in multiprocessing.active_children() if child not in before and child.pid]

    until(lambda: len(ours()) == 2, "two workers")
    os.kill(ours()[0], signal.SIGKILL)
    until(lambda: {"one", "two"} <= {result.name for result in seen}, "the other recordings")
    for pid in ours():
        os.kill(pid, signal.SIGKILL)
    runner.join(DEADLINE_S)
    results = found[0]
    assert [result.name for result in results] == [each.name for each in jobs]
    assert [result.status for result in results] == [FAILED, FAILED, GOOD, GOOD]
    assert all("was ended by SIGKILL" in result.error and "fewer --workers" in result.error for result in results[:2])
    until(lambda: not ours(), "the end of all workers")


def test_names_are_told_apart(job: Make, tmp_path: Path) -> None:
    named = unnamed_twice([job(name="day", output=tmp_path / "day"), job(name="night"), job(name="day", output=tmp_path / "day")])
    assert [each.name for each in named] == ["day", "night", "day-2"] and named[2].output == tmp_path / "day-2"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fault_of_ours_is_a_failed_recording_with_its_traceback(job: Make, workers: int) -> None:
    broken = job(name="broken", output=None)  # not a folder: nobody expects that
    broken = Job(**{**vars(broken), "report": True})
    results = run_all([broken, job(name="good")], workers)
    assert [result.status for result in results] == [FAILED, GOOD]
    assert "please report it" in results[0].error and "Traceback" in results[0].error
