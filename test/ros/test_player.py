"""`openvla-ros play` over DDS to another process: the recorded bytes, the recorded time, nothing that commands, a clean end."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.bags.read import Recording

pytestmark = pytest.mark.ros

PLAY = (sys.executable, "-c", "from openvla_ros.cli.app import main; main()", "play")
LISTEN = (sys.executable, str(Path(__file__).with_name("play_listener.py")))
IMAGES, ACTIONS, NUMBERS = "/camera/image_raw/compressed", "/teleop/action7", "std_msgs/msg/Float64MultiArray"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("played") / "episode"
    make_episode(folder, EpisodeSettings(seconds=3.0, width=160, height=120))
    return folder


@pytest.fixture
def start(ros_environment: dict[str, str]) -> Iterator[Start]:
    """Starts a process in this test's domain; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*command: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(("timeout", "-k", "5", "60", *command), env=ros_environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    """The JSON object that a process ended with."""
    out, log = process.communicate(timeout=60)
    assert process.returncode == code, out + log
    return json.loads(out) | {"log": log}


def recorded(bag: Path, topic: str) -> list[str]:
    """DDS sends whole words of four bytes: what does not fill one is followed by zeros."""
    with Recording(bag) as recording:
        return [hashlib.sha256(raw.data + bytes(-len(raw.data) % 4)).hexdigest() for raw in recording.messages([recording.topic(topic)])]


def assert_came_in_order(heard: list[str], sent: list[str]) -> None:
    """Unchanged, in order and up to the last. On a busy machine a slow reader may miss some: the queue keeps the newest ten."""
    left = iter(sent)
    assert all(mark in left for mark in heard), "a message was changed, repeated or came out of order"
    assert heard[-1] == sent[-1] and len(heard) >= min(10, len(sent))


def test_the_bytes_arrive_as_recorded_and_the_clock_goes_with_them(start: Start, episode: Path) -> None:
    topics = {IMAGES: "sensor_msgs/msg/CompressedImage", "/state/ee_pose": "geometry_msgs/msg/PoseStamped", ACTIONS: NUMBERS,
              "/replay" + ACTIONS: NUMBERS}
    listener = start(*LISTEN, json.dumps(topics))
    said = ended(start(*PLAY, str(episode), "--rate", "3", "--wait-for-subscribers", "30", "--json"))
    heard = ended(listener)
    assert said["sent"] == {IMAGES: 15, "/instruction": 1, "/state/ee_pose": 15, "/state/gripper": 15}
    assert sorted(heard["messages"]) == [IMAGES, "/state/ee_pose"]
    for topic, marks in heard["messages"].items():
        assert_came_in_order(marks, recorded(episode, topic))
    assert heard["late_instruction"] == "put the red block in the bowl"
    assert f"{ACTIONS} ({NUMBERS}) is left out" in said["log"]
    with Recording(episode) as recording:
        clocks = heard["clock_ns"]
        assert all(earlier <= later for earlier, later in pairwise(clocks))
        assert clocks[0] >= recording.start_ns and clocks[-1] > recording.end_ns + 1_500_000_000  # goes on after the last message


def test_a_named_command_is_heard_under_replay_only(start: Start, episode: Path) -> None:
    listener = start(*LISTEN, json.dumps({ACTIONS: NUMBERS, "/replay" + ACTIONS: NUMBERS}))
    said = ended(start(*PLAY, str(episode), "--rate", "5", "--topics", ACTIONS, "--wait-for-subscribers", "30", "--json"))
    assert said["sent"] == {"/replay" + ACTIONS: 14} and "commands or is unknown" in said["log"]
    heard = ended(listener)["messages"]
    assert sorted(heard) == ["/replay" + ACTIONS]
    assert_came_in_order(heard["/replay" + ACTIONS], recorded(episode, ACTIONS))


@pytest.mark.shared
def test_raw_pictures_of_a_real_robot_arrive_whole(start: Start, shared: Path) -> None:
    bag = shared / "data/bags/bridge_v2_pot_640x480_raw"
    listener = start(*LISTEN, json.dumps({"/image": "sensor_msgs/msg/Image"}))
    said = ended(start(*PLAY, str(bag), "--rate", "2", "--remap", "/camera/image_raw:=/image", "--wait-for-subscribers", "30", "--json"))
    assert said["sent"]["/image"] == 24
    assert_came_in_order(ended(listener)["messages"]["/image"], recorded(bag, "/camera/image_raw"))


@pytest.mark.shared
def test_types_that_are_not_installed_are_skipped_with_a_word(start: Start, shared: Path) -> None:
    bag = shared / "data/bags/interbotix_wx200_joint_states"
    said = ended(start(*PLAY, str(bag), "--rate", "100", "--topics", "/wx200/joint_states", "--topics", "/wx200/commands/joint_single",
                       "--linger-s", "0", "--json"))
    assert said["sent"] == {"/wx200/joint_states": 6001}
    assert "interbotix_xs_msgs/msg/JointSingleCommand is not installed here" in said["log"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_loop_cleanly(start: Start, episode: Path, number: signal.Signals) -> None:
    listener = start(*LISTEN, json.dumps({IMAGES: "sensor_msgs/msg/CompressedImage"}))
    player = start(*PLAY, str(episode), "--rate", "20", "--loop", "--wait-for-subscribers", "30", "--json")
    # `timeout` in front of the player passes SIGTERM on but not SIGINT, so the player itself is signalled.
    for line in iter(player.stderr.readline, ""):  # its first words come before it waits
        if "left out" in line:
            break
    child = wait_for_child(player)
    wait_until_heard(start, player)
    os.kill(child, number)
    assert ended(player)["sent"][IMAGES] > 15
    clocks = ended(listener)["clock_ns"]
    assert any(later < earlier for earlier, later in pairwise(clocks))  # the loop turned the clock back


def test_a_paused_player_sends_nothing_before_it_is_told_to(start: Start, episode: Path) -> None:
    player = start(*PLAY, str(episode), "--rate", "3", "--start-paused", "--wait-for-subscribers", "30", "--json")
    listener = start(*LISTEN, json.dumps({IMAGES: "sensor_msgs/msg/CompressedImage"}), "/bag_player/resume")
    said, heard = ended(player), ended(listener)
    assert heard["before_resume"] == 0 and heard["resumed"] in ("begins to play", "was playing already")
    assert said["sent"][IMAGES] == len(heard["messages"][IMAGES]) == 15, "the reader's side knew its writer before it said so"
    assert heard["messages"][IMAGES] == recorded(episode, IMAGES)


def test_two_players_of_one_topic_do_not_go_on(start: Start, episode: Path) -> None:
    """Two clocks are nobody's clock. Whoever notices the other first ends with the reason, however late it notices."""
    players = [start(*PLAY, str(episode), "--rate", "0.5", "--json") for _ in range(2)]
    said = []
    for player in players:
        out, log = player.communicate(timeout=60)
        assert player.returncode in (0, 2), out + log
        said.append(json.loads(out).get("error", ""))
    assert any("/clock has several publishers (" in error for error in said)


def test_nobody_listening_is_said(start: Start, episode: Path) -> None:
    refused = ended(start(*PLAY, str(episode), "--wait-for-subscribers", "0.2", "--json"), code=2)
    assert f"nobody listens to {IMAGES}" in refused["error"]


def test_it_stays_on_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    from openvla_ros.ros.player import stay_on_this_computer

    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    monkeypatch.setenv("ROS_STATIC_PEERS", "192.168.1.2")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.delenv("ROS_LOCALHOST_ONLY", raising=False)
    stay_on_this_computer()
    assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert "ROS_STATIC_PEERS" not in os.environ and "ROS_LOCALHOST_ONLY" not in os.environ
    monkeypatch.setenv("ROS_DISTRO", "humble")
    stay_on_this_computer()
    assert os.environ.pop("ROS_LOCALHOST_ONLY") == "1"


def wait_for_child(process: subprocess.Popen[str]) -> int:
    """The process that `timeout` runs."""
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:
            return int(children[0])
    raise AssertionError("the player ended early")


def wait_until_heard(start: Start, player: subprocess.Popen[str]) -> None:
    """A listener that came, heard the clock and left again: the player is at work."""
    code = ("import rclpy; from rosgraph_msgs.msg import Clock; rclpy.init(); node = rclpy.create_node('ear'); heard = []\n"
            "node.create_subscription(Clock, '/clock', heard.append, 10)\n"
            "while len(heard) < 100: rclpy.spin_once(node, timeout_sec=0.1)\n"
            "rclpy.shutdown(); print('{}')")
    ear = start(sys.executable, "-c", code)
    while ear.poll() is None:
        if player.poll() is not None:
            raise AssertionError("the player ended early: " + "".join(player.communicate()))
        try:
            ear.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            continue
    ended(ear)
