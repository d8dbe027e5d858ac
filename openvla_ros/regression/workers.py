"""Many jobs in, their results out in the same order: in this process, or in several that share nothing.

Each worker process loads a policy once and takes one job after the other. A worker that dies takes only its own job with it: that job
is listed as failed with the signal that ended it, and another worker goes on with the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from openvla_ros.contract import Policy
from openvla_ros.errors import OpenvlaRosError
from openvla_ros.policy.catalogue import PolicySettings, load_policy
from openvla_ros.regression.job import FAILED, Job, Result, check, run_job

FAREWELL_S = 5.0
"""How long an idle worker may take to leave before it is killed."""

OnResult = Callable[[Result], None]


class LoadedPolicy:
    """Keeps the policy that was asked for last, so that jobs in a row load it once. Two would not fit on many GPUs."""

    def __init__(self, progress: bool | None = False) -> None:
        """progress: a bar on stderr while loading; None means if stderr is a terminal."""
        self._progress = progress
        self._settings: PolicySettings | None = None
        self._policy: Policy | None = None

    def get(self, settings: PolicySettings) -> Policy:
        """The policy of these settings. Raises what `load_policy` raises."""
        if self._policy is None or settings != self._settings:
            self.close()
            self._policy, self._settings = load_policy(settings, self._progress), settings
        return self._policy

    def close(self) -> None:
        """Free it."""
        if self._policy is not None:
            self._policy.close()
        self._policy = self._settings = None


def run_all(jobs: Sequence[Job], workers: int = 1, on_result: OnResult | None = None) -> list[Result]:
    """Run all jobs. Bad input of one never stops the others.

    workers: processes; 1 runs here. on_result: called here as each job ends, in any order.
    """
    order = sorted(range(len(jobs)), key=lambda place: (repr(jobs[place].policy), place))  # those of one policy in a row
    if workers > 1 and len(jobs) > 1:
        return _in_processes(jobs, order, min(workers, len(jobs)), on_result)
    results: dict[int, Result] = {}
    loaded = LoadedPolicy()
    try:
        for place in order:
            results[place] = attempt(jobs[place], loaded)
            if on_result:
                on_result(results[place])
    finally:
        loaded.close()
    return [results[place] for place in range(len(jobs))]


def attempt(job: Job, loaded: LoadedPolicy) -> Result:
    """A job's result, whatever happens to it."""
    try:
        check(job)
        return run_job(job, loaded.get(job.policy))
    except OpenvlaRosError as error:
        return Result(job.name, FAILED, error=str(error))
    except Exception as error:
        return Result(job.name, FAILED, error="a fault of openvla_ros, please report it:\n" + "".join(traceback.format_exception(error)))


class _Worker:
    """One process and the job that it has."""

    def __init__(self, context: Any, threads: int) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that its end shows here
        self.place: int | None = None

    def obituary(self) -> str:
        self.process.join(FAREWELL_S)
        code = self.process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with exit code {code}"
        hint = " Probably there was not enough memory: use fewer --workers, or a smaller --batch." if code == -signal.SIGKILL else ""
        return f"the worker process {how} in the middle of this recording.{hint}"


def _in_processes(jobs: Sequence[Job], order: Sequence[int], count: int, on_result: OnResult | None) -> list[Result]:
    context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads, as torch has, may hang
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    waiting, results, workers = deque(order), dict[int, Result](), list[_Worker]()

    def settle(worker: _Worker, result: Result) -> None:
        assert worker.place is not None
        results[worker.place], worker.place = result, None
        if on_result:
            on_result(result)

    try:
        while len(results) < len(jobs):
            while waiting and len(workers) < count:
                workers.append(_Worker(context, threads))
            for worker in workers:
                if worker.place is None and waiting:
                    worker.place = waiting.popleft()
                    with suppress(OSError):  # it died before it could be told: its end shows below
                        worker.connection.send(jobs[worker.place])
            ready = wait([worker.connection for worker in workers if worker.place is not None])
            for worker in [worker for worker in workers if worker.connection in ready]:
                try:
                    settle(worker, worker.connection.recv())
                except (EOFError, OSError):
                    assert worker.place is not None
                    settle(worker, Result(jobs[worker.place].name, FAILED, error=worker.obituary()))
                    worker.connection.close()
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.connection.close()  # an idle worker ends by that
            if worker.place is not None:
                worker.process.terminate()
            worker.process.join(FAREWELL_S)
            if worker.process.is_alive():
                worker.process.kill()
    return [results[place] for place in range(len(jobs))]


def _work(connection: Connection, threads: int) -> None:
    """A worker's life: jobs until the other end closes. threads: its share of the cores, unless the user said otherwise."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before torch is imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is ours
    loaded = LoadedPolicy()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        result = attempt(job, loaded)
        try:
            connection.send(result)
        except OSError:
            return  # nobody waits for it any more
        del result


def unnamed_twice(jobs: Sequence[Job]) -> list[Job]:
    """The same jobs with different names and output folders: a second `bag` becomes `bag-2`."""
    seen: dict[str, int] = {}
    named = []
    for job in jobs:
        seen[job.name] = seen.get(job.name, 0) + 1
        name = job.name if seen[job.name] == 1 else f"{job.name}-{seen[job.name]}"
        named.append(replace(job, name=name, output=job.output.with_name(name)) if name != job.name else job)
    return named
