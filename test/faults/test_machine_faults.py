"""A computer in trouble while the arm moves: no processor time, no room on the disk, no network."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.faults]


def spin() -> None:
    while True:
        pass


def test_the_processor_is_saturated(own_stage: Any) -> None:
    """Four times as many busy processes as processors. Ticks come late, and the bound holds with that lateness."""
    own_stage.command_node()
    world = own_stage.world()
    busy = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(4 * (os.cpu_count() or 1))]
    for process in busy:
        process.start()
    try:
        for attempt in range(3):
            twists, _ = world.move()
            world.see("HOLD")
            world.stops_by_age(twists, f"processor saturated, {attempt}")
    finally:
        for process in busy:
            process.kill()
            process.join()


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[list[str], str]:
    """What to start a node through so that its log folder is 64 kB small; and that folder, as the node sees it."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mount = f'mount -t tmpfs -o size=64k tmpfs {folder} && exec "$@"'
    prefix = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", mount, "sh"]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False) if shutil.which("unshare") else None
    if probe is None or probe.returncode:
        pytest.skip(f"no small disk can be mounted here: {probe.stderr.strip() if probe else 'unshare is not installed'}")
    return prefix, str(folder)


@pytest.mark.parametrize("when", ["before the start", "in motion"])
def test_the_disk_of_the_logs_is_full(own_stage: Any, small_disk: tuple[list[str], str], when: str) -> None:
    """Nothing is lost but the log."""
    prefix, folder = small_disk
    fill = ["sh", "-c", f'head -c 1M /dev/zero > {folder}/filling 2>/dev/null; exec "$@"', "sh"] if when == "before the start" else []
    child = own_stage.command_node(prefix=[*prefix, *fill], environment={"ROS_LOG_DIR": folder})
    world = own_stage.world()
    twists, reports = world.move()
    seen = Path(f"/proc/{child.inner.pid}/root{folder}")
    if when == "in motion":
        with pytest.raises(OSError, match="No space"), (seen / "filling").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    assert shutil.disk_usage(seen).free == 0
    world.see_rule(reports, "age")
    world.see("HOLD")
    world.stops_by_age(twists, f"disk full {when}")
    twists, reports = world.move()  # and it goes on working
    world.emergency_stop()
    report = world.see_report(reports, lambda report: report.driver == report.STOPPED, "STOPPED")
    world.stops_at_once(report, twists, f"emergency stop, disk full {when}")


class Link:
    """Two network namespaces, of a robot's computer and of one with a GPU, with one cable between them."""

    def __init__(self) -> None:
        self.robot, self.server = f"robot{os.getpid()}", f"server{os.getpid()}"
        self.end = ""  # of the cable, in the robot's namespace

    def make(self) -> None:
        ends = {self.robot: f"r{os.getpid()}", self.server: f"s{os.getpid()}"}
        for name in ends:
            ip("netns", "add", name)
        ip("link", "add", ends[self.robot], "netns", self.robot, "type", "veth", "peer", "name", ends[self.server], "netns", self.server)
        for number, (name, end) in enumerate(ends.items(), start=1):
            ip("-n", name, "address", "add", f"10.99.0.{number}/24", "dev", end)
            for device in ("lo", end):
                ip("-n", name, "link", "set", device, "up")
        self.end = ends[self.robot]

    def remove(self) -> None:
        for name in (self.robot, self.server):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def link() -> Iterator[Link]:
    if not shutil.which("ip"):
        pytest.skip("no network namespaces: the command ip is not installed (apt install iproute2)")
    link = Link()
    try:
        link.make()
        yield link
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces can be made here: {error.stderr.strip()}")
    finally:
        link.remove()


def test_the_network_between_robot_and_policy_is_cut(link: Link, clean_environment: dict[str, str], tmp_path: Path) -> None:
    """The scenario is the function below, in a process inside the robot's network: the middleware looks at its networks once."""
    command = ["ip", "netns", "exec", link.robot, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "faults",
               "--basetemp", str(tmp_path / "inside"), "-o", "python_functions=inside_*", __file__]
    # Nothing but the cable is a subnet in there, and only it may carry messages: shared memory would pass it by.
    network = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET", "FASTDDS_BUILTIN_TRANSPORTS": "UDPv4", "FAULTS_SERVER": link.server,
               "FAULTS_CABLE": link.end}
    inside = subprocess.run(command, env=clean_environment | network, capture_output=True, text=True, timeout=120, check=False)
    assert inside.returncode == 0 and "1 passed" in inside.stdout, inside.stdout + inside.stderr


def inside_the_robots_network(own_stage: Any) -> None:
    """Camera and command_node are on the robot's computer, policy_node on the other. The cable is cut: the arm stops by age. It is
    mended: nothing moves before a human wants it."""
    world = own_stage.world()
    own_stage.environment |= {"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}
    own_stage.command_node()
    world.film()
    world.say("put the spoon on the towel")
    own_stage.policy_node(world, prefix=["ip", "netns", "exec", os.environ["FAULTS_SERVER"]])
    twists, _ = world.drive()
    ip("link", "set", os.environ["FAULTS_CABLE"], "down")
    world.see("HOLD")
    world.seen_ns = max(chunk.header.stamp.sec * 10**9 + chunk.header.stamp.nanosec for chunk in world.heard if chunk.steps)
    world.stops_by_age(twists, "network cut")
    count = len(world.heard)
    ip("link", "set", os.environ["FAULTS_CABLE"], "up")
    world.until(lambda: any(chunk.steps for chunk in world.heard[count:]), "chunks over the mended cable")
    world.stays()
    world.drive()
