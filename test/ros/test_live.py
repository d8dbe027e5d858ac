"""The spine on real input: a BridgeData episode at its own speed, through policy_node and command_node, to the arm's topic."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS")
import rclpy
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from openvla_msgs.msg import ActionChunk, CommandReport
from openvla_msgs.srv import SetDriver
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from openvla_ros.action.command import shorten, to_twist
from openvla_ros.bags.read import Recording
from openvla_ros.ros.convert import LATCHED, from_delta, to_ns
from openvla_ros.ros.profile import read_robot

pytestmark = [pytest.mark.ros, pytest.mark.shared]

IMAGES = "/camera/image_raw/compressed"
FRAME = "wx250s/base_link"
AGE_S = 2.0  # max_observation_age_s: above the default, for computers that also run other things
LINGER_S = 5.0  # the recording's clock goes on for so long after its last message: longer than AGE_S, so that age stops the arm
STEP_S = 0.2
EVERYTHING = QoSProfile(depth=2000, reliability=ReliabilityPolicy.RELIABLE)
DEADLINE_S = 90.0


class Listener(Node):
    """Hears everything on the recording's clock, asks for transitions and drivers."""

    def __init__(self, context: rclpy.Context) -> None:
        super().__init__("listener", context=context, parameter_overrides=[Parameter("use_sim_time", value=True)])
        self.chunks: list[ActionChunk] = []
        self.reports: list[CommandReport] = []
        self.twists: list[tuple[TwistStamped, int, float]] = []  # with the ROS time [ns] and the wall time [s] of arrival
        self.driver = ""
        self.create_subscription(ActionChunk, "action_chunk", self.chunks.append, EVERYTHING)
        self.create_subscription(CommandReport, "command_report", self.reports.append, EVERYTHING)
        self.create_subscription(TwistStamped, "delta_twist_cmds", self._on_twist, EVERYTHING)
        self.create_subscription(String, "driver", self._on_driver, LATCHED)
        self.transitions = self.create_client(ChangeState, "policy_node/change_state")
        self.drivers = self.create_client(SetDriver, "set_driver")

    def _on_twist(self, message: TwistStamped) -> None:
        self.twists.append((message, self.now_ns, time.monotonic()))

    def _on_driver(self, message: String) -> None:
        self.driver = message.data

    @property
    def now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def ask(self, client: Any, request: Any) -> Any:
        future = client.call_async(request)
        until(future.done, "an answer")
        return future.result()

    def transit(self, transition: int) -> None:
        request = ChangeState.Request()
        request.transition.id = transition
        assert self.ask(self.transitions, request).success

    def hand_over(self) -> None:
        """POLICY, as soon as the recording's clock runs."""
        until(lambda: self.ask(self.drivers, SetDriver.Request(driver=SetDriver.Request.POLICY)).success, "POLICY")
        until(lambda: self.driver == "POLICY", "the driver topic")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.02)


@pytest.fixture
def listener(ros_environment: dict[str, str]) -> Iterator[Listener]:
    context = rclpy.Context()
    rclpy.init(context=context)
    node, executor = Listener(context), SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    yield node
    executor.shutdown()
    thread.join()
    node.destroy_node()
    rclpy.shutdown(context=context)


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(ros_environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts an entry point as a process in this test's domain, its output in a file; none outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        code = f"import sys; from {module} import main; sys.exit(main())"
        command = ("timeout", "-k", "5", "180", sys.executable, "-c", code, *arguments)
        with (tmp_path / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=ros_environment | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(20)


def offline(bag: Path, checkpoint: Path, folder: Path, environment: dict[str, str]) -> dict[int, dict[str, Any]]:
    """What `openvla-ros replay` says about each frame, by its stamp."""
    command = [sys.executable, "-c", "from openvla_ros.cli.app import main; main()", "replay", str(bag), "--output", str(folder), "--json",
               "--checkpoint", str(checkpoint), "--unnorm-key", "bridge_orig", "--resize", "bridge", "--threads", "1"]
    subprocess.run(command, env=environment | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=120)
    frames = json.loads((folder / "replay.json").read_text())["frames"]
    return {frame["stamp_ns"]: frame for frame in frames}


def played_stamps(bag: Path) -> set[int]:
    """Header stamps of the recorded pictures [ns]."""
    with Recording(bag) as recording:
        return {to_ns(recording.decode(raw).header.stamp) for raw in recording.messages([recording.topic(IMAGES)])}


def moves(twist: TwistStamped) -> bool:
    return any((twist.twist.linear.x, twist.twist.linear.y, twist.twist.linear.z,
                twist.twist.angular.x, twist.twist.angular.y, twist.twist.angular.z))


def velocity(twist: TwistStamped) -> np.ndarray:
    linear, angular = twist.twist.linear, twist.twist.angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])


def test_a_real_episode_becomes_commands(shared: Path, tmp_path: Path, ros_environment: dict[str, str], start: Start,
                                         listener: Listener) -> None:
    bag, checkpoint = shared / "data" / "bags" / "bridge_v2_broccoli_640x480", shared / "golden" / "tiny_fused" / "checkpoint"
    expected = offline(bag, checkpoint, tmp_path / "offline", ros_environment)
    stamps, limits = played_stamps(bag), read_robot("wx250s_replay").limits
    common = ("-p", "use_sim_time:=true", "-p", f"max_observation_age_s:={AGE_S}", "-p", "base_frame:=" + FRAME)
    policy = start("policy", "openvla_ros.ros.policy_node", "--ros-args", *common, "-p", f"checkpoint:={checkpoint}", "-p", "threads:=1",
                   "-p", "draft:=none", "-p", "image_transport:=compressed", "-r", f"image/compressed:={IMAGES}",
                   "-r", "instruction:=/instruction")
    command = start("command", "openvla_ros.ros.command_node", "--ros-args", *common, "-p", "robot:=wx250s_replay", "-p",
                    "resume_within_s:=5.0")
    until(lambda: listener.transitions.service_is_ready() and listener.drivers.service_is_ready(), "both nodes")
    listener.transit(Transition.TRANSITION_CONFIGURE)

    # The recording plays and the driver is POLICY, but the policy is not active: nothing comes out, and nothing moves.
    player = start("player", "openvla_ros.cli.app", "play", str(bag), "--wait-for-subscribers", "30", "--linger-s", str(LINGER_S))
    listener.hand_over()
    begun_ns = listener.now_ns
    until(lambda: listener.now_ns > begun_ns + 1_000_000_000, "a second of the recording")
    assert not listener.chunks and not listener.twists
    activated_ns = listener.now_ns
    listener.transit(Transition.TRANSITION_ACTIVATE)
    assert player.wait(DEADLINE_S) == 0
    until(lambda: bool(listener.twists) and time.monotonic() - listener.twists[-1][2] > 1.5, "silence after the recording")

    chunks, twists = list(listener.chunks), list(listener.twists)
    assert len(chunks) >= 5, "hardly anything was inferred; is this computer overloaded?"
    agree_with_replay(chunks, expected, stamps)
    stamp_of_last = max(to_ns(chunk.header.stamp) for chunk in chunks)
    carry_fresh_stamps([twist for twist, _, _ in twists], activated_ns, {to_ns(chunk.header.stamp) for chunk in chunks})
    steps = [report for report in listener.reports if report.step_started]
    assert len(steps) >= 5, {report.stop_reason for report in listener.reports}
    come_from_chunks(steps, chunks, limits)
    appear_on_the_arm(steps, [twist for twist, _, _ in twists])

    # The end of the recording: zeros, then silence.
    moving = [to_ns(twist.header.stamp) for twist, _, _ in twists if moves(twist)]
    zeros_after = [twist for twist, _, _ in twists if to_ns(twist.header.stamp) > moving[-1]]
    assert moving[-1] <= stamp_of_last + (AGE_S + limits.longest_ramp_s + 0.2) * 1e9
    assert len(zeros_after) >= 5 and not any(moves(twist) for twist in zeros_after)

    stops_at_deactivate(listener, start, bag, limits)
    for node in (policy, command):
        node.send_signal(signal.SIGINT)
        assert node.wait(30) == 0


def agree_with_replay(chunks: list[ActionChunk], expected: dict[int, dict[str, Any]], stamps: set[int]) -> None:
    """Every chunk carries the stamp of a frame that was played, and what `replay` computed for that frame."""
    with_steps = 0
    for chunk in chunks:
        stamp_ns = to_ns(chunk.header.stamp)
        assert stamp_ns in stamps and chunk.header.frame_id == FRAME
        frame = expected[stamp_ns]
        assert list(chunk.token_ids) == frame["token_ids"] and chunk.instruction == frame["instruction"]
        assert (chunk.fault or None) == frame["fault"]
        for step in chunk.steps:
            np.testing.assert_allclose(from_delta(step).to_vector(), frame["action"], atol=1e-9)
            with_steps += 1
    assert with_steps >= 5
    assert [chunk.sequence for chunk in chunks] == sorted({chunk.sequence for chunk in chunks})


def carry_fresh_stamps(twists: list[TwistStamped], activated_ns: int, pictures_ns: set[int]) -> None:
    """Stamps of now, not of the picture; they rise; the frame is the arm's base."""
    stamps = [to_ns(twist.header.stamp) for twist in twists]
    assert stamps == sorted(stamps) and stamps[0] >= activated_ns
    assert {twist.header.frame_id for twist in twists} == {FRAME}
    moving = {to_ns(twist.header.stamp) for twist in twists if moves(twist)}
    assert moving and not moving <= pictures_ns, "a step is played after its picture was taken"


def come_from_chunks(steps: list[CommandReport], chunks: list[ActionChunk], limits: Any) -> None:
    """Each started step is the one of a chunk, shortened where it is longer than a step may be, its direction kept."""
    by_sequence = {chunk.sequence: chunk for chunk in chunks}
    for report in steps:
        chunk = by_sequence[report.sequence]
        assert report.observation_stamp == chunk.header.stamp and report.header.frame_id == FRAME
        assert report.requested == chunk.steps[0]
        asked, sent = from_delta(report.requested), from_delta(report.sent)
        np.testing.assert_allclose(sent.translation_m, shorten(asked.translation_m, limits.max_step_m), atol=1e-12)
        if not {"step_clamp_rotation", "acceleration"} & set(report.rules):
            np.testing.assert_allclose(sent.rotation_rad, asked.rotation_rad, atol=1e-12)
        assert sent.gripper == min(1.0, max(0.0, asked.gripper))


def appear_on_the_arm(steps: list[CommandReport], twists: list[TwistStamped]) -> None:
    """A step goes to the arm as displacement / duration. One that is cut short, as on a busy computer, may have no tick of its own."""
    sent = np.array([velocity(twist) for twist in twists])
    played = [to_twist([(from_delta(report.sent), 1.0)], STEP_S) for report in steps]
    seen = [np.abs(sent - np.concatenate([twist.linear_m_s, twist.angular_rad_s])).max(axis=1).min() < 1e-9 for twist in played]
    assert any(found for found, twist in zip(seen, played, strict=True) if np.any(twist.linear_m_s))


def stops_at_deactivate(listener: Listener, start: Start, bag: Path, limits: Any) -> None:
    """Deactivated in the middle of a recording: one word "stop", zeros, and then nothing while the recording goes on."""
    start("player_again", "openvla_ros.cli.app", "play", str(bag), "--wait-for-subscribers", "30")
    ended_ns = listener.now_ns
    until(lambda: listener.now_ns < ended_ns, "the clock of the second round")
    again_ns = listener.now_ns
    until(lambda: listener.now_ns > again_ns + 300_000_000, "everybody to notice that the clock went back, which means HOLD")
    listener.hand_over()
    before = len(listener.twists)
    until(lambda: any(moves(twist) for twist, _, _ in listener.twists[before:]), "motion")
    listener.transit(Transition.TRANSITION_DEACTIVATE)
    until(lambda: not listener.chunks[-1].steps and "deactivated" in listener.chunks[-1].fault, "the stop word")
    said, stopped_ns = len(listener.chunks), listener.now_ns
    until(lambda: time.monotonic() - listener.twists[-1][2] > 1.5, "silence")
    assert listener.now_ns > stopped_ns + 1_000_000_000, "the recording was to go on meanwhile"
    assert len(listener.chunks) == said
    at_rest_ns = stopped_ns + (limits.longest_ramp_s + 0.1) * 1e9
    after = [twist for twist, _, _ in listener.twists[before:] if to_ns(twist.header.stamp) > at_rest_ns]
    assert after and not any(moves(twist) for twist in after)
