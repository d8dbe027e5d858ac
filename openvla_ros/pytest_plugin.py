"""`pytest DIR` runs the suites of recordings in DIR: each file that ends in .replay.yaml is one test. Registered with pytest by setup.py.

Nothing else is collected, and nothing heavy is imported before such a file is met.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from openvla_ros.errors import OpenvlaRosError

ENDING = ".replay.yaml"  # of regression.suite, which is not imported for every run of pytest

LOADED = pytest.StashKey[Any]()  # a LoadedPolicy, from the first test on


class NotAsExpected(Exception):
    """The diagnosis of a recording, in words."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where pictures of failing frames go."""
    group = parser.getgroup("openvla_ros")
    group.addoption("--replay-output", default="replay-failures", metavar="DIR",
                    help="folder for the pictures of frames that are not as expected")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ReplayFile | None:
    """One file of a suite."""
    return ReplayFile.from_parent(parent, path=file_path) if file_path.name.endswith(ENDING) else None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Free the policy that was loaded last."""
    if (loaded := config.stash.get(LOADED, None)) is not None:
        loaded.close()


class ReplayFile(pytest.File):
    """A file of a suite. It holds one test."""

    def collect(self) -> Iterable[pytest.Item]:
        """That test."""
        yield ReplayItem.from_parent(self, name=self.path.name.removesuffix(ENDING))


class ReplayItem(pytest.Item):
    """A recording, and what is expected of it."""

    def runtest(self) -> None:
        """Replay it. Raises NotAsExpected, or OpenvlaRosError when nothing can be judged."""
        from openvla_ros.regression.job import GOOD, as_words, check, run_job
        from openvla_ros.regression.suite import read_entry
        from openvla_ros.regression.workers import LoadedPolicy

        if LOADED not in self.config.stash:
            self.config.stash[LOADED] = LoadedPolicy()
        loaded = self.config.stash[LOADED]
        job = read_entry(self.path, Path(self.config.getoption("--replay-output")))
        check(job)
        result = run_job(job, loaded.get(job.policy))
        if result.status != GOOD:
            raise NotAsExpected(as_words(result))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The words alone: a traceback through our own code says nothing about a recording."""
        if isinstance(excinfo.value, (NotAsExpected, OpenvlaRosError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it is and what it is called."""
        return self.path, None, f"replay: {self.name}"
