"""What tests share: the data beside the checkout, a ROS domain of one's own, and the environment of child processes."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from openvla_ros.ros.domain import claim_domain, is_silent

hypothesis.settings.register_profile("openvla_ros", deadline=None)  # no test asserts a time, not even by accident
hypothesis.settings.load_profile("openvla_ros")

CHECKOUT = Path(__file__).resolve().parent.parent
WHEELS_GUARD = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"  # set in every process that runs on ROS wheels from PyPI
ANSWER_S, AGAIN_S = 60.0, 5.0
DOMAINS = itertools.cycle(random.sample(range(1, 101), k=100))  # the next test does not get the domain that was just used


def shared_folder() -> Path:
    return Path(os.environ.get("OPENVLA_ROS_SHARED", CHECKOUT.parent / "shared"))


@cache
def absent(marker: str) -> str:
    """What a test with this marker needs and this machine lacks; empty when it can run."""
    if marker == "shared" and not shared_folder().is_dir():
        return f"no shared test data in {shared_folder()}; set OPENVLA_ROS_SHARED to its folder"
    if marker == "ros":
        lacking = [name for name in ("rclpy", "openvla_msgs") if find_spec(name) is None]
        return f"{' and '.join(lacking)} not importable; run make setup or source a ROS workspace" if lacking else ""
    if marker == "launch":
        lacking = [name for name in ("launch", "launch_ros") if find_spec(name) is None]
        return f"{' and '.join(lacking)} not importable; ROS 2 launch is not on PyPI, source a ROS installation" if lacking else ""
    if marker == "gpu":
        if find_spec("torch") is None:
            return "torch is not installed"
        import torch

        return "" if torch.cuda.is_available() else "no CUDA device"
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    reasons = [absent(mark.name) for mark in item.iter_markers()]
    if any(reasons):
        pytest.skip("; ".join(filter(None, reasons)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several pytest workers share the tests (make test), one of them gets all that start ROS nodes: those wait for one another's
    processes most of the time, and a second such crowd would only make them late."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.get_closest_marker("ros") or item.get_closest_marker("launch"):
                item.add_marker(pytest.mark.xdist_group("ros"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The worst stop times that the fault scenarios measured: output, what the time counts from, scenario, stop, bound, lateness [s]."""
    ended = [report for reports in terminalreporter.stats.values() for report in reports if getattr(report, "when", "") == "teardown"]
    stops = [value for report in ended for name, value in report.user_properties if name == "stop"]
    if stops:
        terminalreporter.section("worst stop times, from the stamps of the commands")
    for output, kind in sorted({(stop[0], stop[1]) for stop in stops}):
        alike = [stop[2:] for stop in stops if (stop[0], stop[1]) == (output, kind)]
        scenario, stop_s, bound_s, late_s = max(alike, key=lambda stop: stop[1])
        terminalreporter.write_line(f"{output}, from {kind}: {stop_s:.3f} s of {bound_s:.3f} s, and {late_s:.3f} s for a late tick "
                                    f"({scenario})")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The repository root."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared test data, read-only. Skips the test where it is absent, so the marker `shared` is for the reader's `-m`."""
    if reason := absent("shared"):
        pytest.skip(reason)
    return shared_folder()


@contextmanager
def quiet_domain() -> Iterator[int]:
    """Hold a ROS domain that nobody else on this machine has, 1 to 100."""
    while True:
        number = next(DOMAINS)
        claim = claim_domain(number)
        if claim is not None:
            with claim:
                if is_silent(number):
                    yield number
                    return


@pytest.fixture(scope="session")
def hold_domain() -> Callable[[], AbstractContextManager[int]]:
    """`quiet_domain`, for tests that share nodes or need several domains; the others take `ros_domain_id`."""
    return quiet_domain


@pytest.fixture
def ros_domain_id(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A ROS domain that nobody else on this machine has (1 to 100), held for one test and set in this process's environment.

    Two pytest workers, or two runs at once, get different ones; a domain in which something runs already (`openvla-ros run`, a
    forgotten node) is passed over. Nodes made in the test process itself are in it after `rclpy.init()`; for child processes use
    `ros_environment`.
    """
    with quiet_domain() as number:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(number))
        monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield number


@pytest.fixture
def ros_environment(ros_domain_id: int, tmp_path: Path) -> dict[str, str]:
    """Environment for the child processes of one test: its own ROS domain, localhost only, logs in the test's folder."""
    return child_environment() | {
        "ROS_DOMAIN_ID": str(ros_domain_id),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(tmp_path / "ros_log"),
    }


@pytest.fixture(scope="session")
def ask_service() -> Callable[[Any, Any], Any]:
    """(client, request) -> the answer of a node that spins in another thread; fails after ANSWER_S.

    Asked again every AGAIN_S, so only for what may be done twice: an answer is lost when the node has not found the client's reader yet,
    and only the node can tell. Readers are found in the order in which they were made: once one gets its answer, all before it will.
    """
    def ask(client: Any, request: Any) -> Any:
        end, answers = time.monotonic() + ANSWER_S, list[Any]()
        assert client.wait_for_service(ANSWER_S), client.srv_name
        while not any(answer.done() for answer in answers):
            assert time.monotonic() < end, f"waited {ANSWER_S} s for an answer of {client.srv_name}"
            answers.append(client.call_async(request))
            patience = time.monotonic() + AGAIN_S
            while not any(answer.done() for answer in answers) and time.monotonic() < patience:
                time.sleep(0.005)
        return next(answer for answer in answers if answer.done()).result()

    return ask


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """Environment for child processes that do not talk ROS."""
    return child_environment()


def child_environment() -> dict[str, str]:
    """A copy of this process's environment in which the ROS wheels start as if from a shell.

    The wheels set a guard variable and LD_LIBRARY_PATH when python starts (and OpenCV adds to the latter); a child that
    inherits the guard does not set its own libraries, and finds no message package that only its environment has.
    """
    environment = dict(os.environ)
    if environment.pop(WHEELS_GUARD, None) is not None:
        environment.pop("LD_LIBRARY_PATH", None)
    return environment
