"""command_node shares no memory with anybody: what a killed process leaves in shared memory can silence who sends to it, for ever."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openvla_ros.ros import transport
from openvla_ros.ros.transport import PROFILE_VARIABLES, command_profile, image_profile, share_no_memory

DEADLINE_S = 20.0

COMMAND_NODE = [sys.executable, "-m", "openvla_ros.ros.command_node", "--ros-args", "-p", "robot:=wx250s", "-p", "dry_run:=true"]

PEER = """
import sys, time
import rclpy
from openvla_ros.ros.convert import LATCHED
from openvla_ros.ros.transport import shares_memory
from std_msgs.msg import String

rclpy.init()
node, heard = rclpy.create_node("peer"), []
node.create_subscription(String, "driver", heard.append, LATCHED)
end = time.monotonic() + 20.0
while not heard and time.monotonic() < end:
    rclpy.spin_once(node, timeout_sec=0.1)
print(heard[0].data if heard else "nothing", shares_memory(), flush=True)
"""


def test_which_profile_is_chosen(tmp_path: Path) -> None:
    own, copied, images = tmp_path / "own.xml", tmp_path / "fastdds.xml", str(image_profile())
    own.write_text(image_profile().read_text() + "<!-- mine -->")
    shutil.copy(image_profile(), copied)
    everywhere, here = command_profile(), command_profile(localhost=True)
    for given, profile, scope in (
            ({}, everywhere, None),
            ({"FASTRTPS_DEFAULT_PROFILES_FILE": images}, everywhere, None),
            ({"FASTRTPS_DEFAULT_PROFILES_FILE": str(copied)}, everywhere, None),
            ({"FASTDDS_DEFAULT_PROFILES_FILE": str(own)}, None, None),
            ({"FASTRTPS_DEFAULT_PROFILES_FILE": "/no/such/file.xml"}, None, None),
            ({"FASTDDS_BUILTIN_TRANSPORTS": "DEFAULT"}, everywhere, None),
            ({"FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"}, None, None),
            ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "localhost", "ROS_STATIC_PEERS": ""}, here, "SYSTEM_DEFAULT"),
            ({"ROS_LOCALHOST_ONLY": "1"}, here, "SYSTEM_DEFAULT"),
            ({"ROS_LOCALHOST_ONLY": "1", "ROS_STATIC_PEERS": "10.0.0.1"}, here, "SYSTEM_DEFAULT"),
            ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_STATIC_PEERS": "10.0.0.1"}, None, "LOCALHOST"),
            ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, None, "OFF"),
            ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET", "ROS_STATIC_PEERS": "10.0.0.1"}, everywhere, "SUBNET")):
        environment = dict(given)
        share_no_memory("rmw_cyclonedds_cpp", environment)
        assert environment == given, "a middleware that has no such profiles"
        share_no_memory("rmw_fastrtps_cpp", environment)
        if profile is None:
            assert environment == given
        else:
            assert {environment[name] for name in PROFILE_VARIABLES} == {str(profile)} and profile.is_file()
        assert environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == scope
        assert scope != "SYSTEM_DEFAULT" or "ROS_LOCALHOST_ONLY" not in environment


def test_a_lost_config_folder_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transport, "share_folder", lambda: tmp_path)
    environment = {"ROS_LOCALHOST_ONLY": "1"}
    share_no_memory("rmw_fastrtps_cpp", environment)
    assert environment == {"ROS_LOCALHOST_ONLY": "1"}


@pytest.fixture
def plain_environment(ros_environment: dict[str, str]) -> dict[str, str]:
    """Without what the developer's shell says about transports."""
    rclpy = pytest.importorskip("rclpy", reason="needs ROS")
    if "fastrtps" not in rclpy.get_rmw_implementation_identifier():
        pytest.skip("another middleware than Fast DDS")
    said = (*PROFILE_VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS", "ROS_LOCALHOST_ONLY", "ROS_STATIC_PEERS")
    return {name: value for name, value in ros_environment.items() if name not in said}


@pytest.mark.ros
@pytest.mark.parametrize("scope", ["LOCALHOST", "SUBNET"])
@pytest.mark.parametrize("profile", [False, True])
def test_command_node_is_heard_without_shared_memory(plain_environment: dict[str, str], tmp_path: Path, scope: str, profile: bool) -> None:
    environment = plain_environment | {"ROS_AUTOMATIC_DISCOVERY_RANGE": scope}
    if profile:
        environment |= dict.fromkeys(PROFILE_VARIABLES, str(image_profile()))
    log = tmp_path / "log"
    with log.open("w") as sink:
        node = subprocess.Popen(COMMAND_NODE, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    try:
        peer = subprocess.run([sys.executable, "-c", PEER], env=environment, capture_output=True, text=True, timeout=2 * DEADLINE_S)
        assert peer.stdout.split() == ["HOLD", "True"], peer.stderr  # the other side has shared memory, and would use it
        assert not any(name in Path(f"/proc/{node.pid}/maps").read_text() for name in transport.SEGMENT_NAMES)
        assert "shares memory" not in log.read_text()
    finally:
        node.terminate()
        assert node.wait(DEADLINE_S) == 0, log.read_text()


@pytest.mark.ros
def test_a_profile_of_the_user_is_kept_and_its_danger_told(plain_environment: dict[str, str], tmp_path: Path) -> None:
    own, log = tmp_path / "own.xml", tmp_path / "log"
    own.write_text(image_profile().read_text() + "<!-- mine -->")
    with log.open("w") as sink:
        node = subprocess.Popen(COMMAND_NODE, env=plain_environment | {"FASTRTPS_DEFAULT_PROFILES_FILE": str(own)}, stdout=sink,
                                stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + DEADLINE_S
        while "shares memory" not in log.read_text():
            assert time.monotonic() < end and node.poll() is None, log.read_text()
            time.sleep(0.05)
    finally:
        node.terminate()
        assert node.wait(DEADLINE_S) == 0
