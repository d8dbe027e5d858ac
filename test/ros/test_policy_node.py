"""policy_node as a process of its own, spoken to over DDS as a camera, an operator and a command node would."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

pytest.importorskip("rclpy", reason="needs ROS")
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from openvla_msgs.action import ExecuteInstruction
from openvla_msgs.msg import ActionChunk, CommandReport
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, to_ns, to_time

pytestmark = pytest.mark.ros

DEADLINE_S = 20.0
QUIET_S = 0.4
"""How long silence is listened to; several frame periods."""


class World(Node):
    """Camera, operator and listener in the test's own process."""

    def __init__(self, context: rclpy.Context, ask_service: Callable[[Any, Any], Any]) -> None:
        super().__init__("world", context=context)
        self.chunks: list[ActionChunk] = []
        self.health: dict[str, DiagnosticStatus] = {}
        self.create_subscription(ActionChunk, "action_chunk", self.chunks.append, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.camera = self.create_publisher(Image, "image", QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE))
        self.driver = self.create_publisher(String, "driver", LATCHED)
        self.reports = self.create_publisher(CommandReport, "command_report", 10)
        self.operator = self.create_publisher(String, "instruction", NEWEST_RELIABLE)
        self.change = self.create_client(ChangeState, "policy_node/change_state")
        self.set_parameters = self.create_client(SetParameters, "policy_node/set_parameters")
        self.goals = ActionClient(self, ExecuteInstruction, "execute_instruction")
        self.ask = self.create_client(GetState, "policy_node/get_state")  # the last reader that is made here: see `meet`
        self.ask_service, self.met = ask_service, False
        self._seed = 0

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.health |= {status.name.split(": ")[-1]: status for status in message.status}

    def value(self, part: str, key: str) -> str:
        """One number of the newest diagnostics; empty before they came."""
        status = self.health.get(part, DiagnosticStatus())
        return next((pair.value for pair in status.values if pair.key == key), "")

    def now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def frame(self, stamp_ns: int | None = None, encoding: str = "rgb8") -> Image:
        """A picture that differs from the one before, as a living camera's does."""
        self._seed += 1
        pixels = np.random.default_rng(self._seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        message = Image(height=48, width=64, encoding=encoding, step=192, data=pixels.tobytes())
        message.header.stamp = to_time(self.now_ns() if stamp_ns is None else stamp_ns)
        return message

    def until(self, good: Callable[[], Any], what: str, meanwhile: Callable[[], Any] | None = None) -> None:
        """Wait until something holds; `meanwhile` is done every 30 ms. Fails after DEADLINE_S."""
        end = time.monotonic() + DEADLINE_S
        while not good():
            assert time.monotonic() < end, f"waited {DEADLINE_S} s for: {what}; health: {self.health}"
            if meanwhile is not None:
                meanwhile()
            time.sleep(0.03)

    def meet(self) -> None:
        """Wait until policy_node can answer: most of what it is asked cannot be asked twice."""
        if not self.met:
            self.ask_service(self.ask, GetState.Request())
        self.met = True

    def call(self, client: Any, request: Any) -> Any:
        self.meet()
        assert client.wait_for_service(DEADLINE_S)
        return self.finish(client.call_async(request))

    def finish(self, future: Any) -> Any:
        self.until(future.done, "an answer")
        return future.result()

    def transition(self, number: int) -> bool:
        return bool(self.call(self.change, ChangeState.Request(transition=Transition(id=number))).success)

    def state(self) -> str:
        return str(self.call(self.ask, GetState.Request()).current_state.label)

    def stream(self) -> None:
        self.camera.publish(self.frame())

    def see_chunk(self, good: Callable[[ActionChunk], bool], what: str) -> ActionChunk:
        """Stream frames until a chunk like this comes."""
        count = len(self.chunks)
        self.until(lambda: any(good(chunk) for chunk in self.chunks[count:]), what, self.stream)
        return next(chunk for chunk in self.chunks[count:] if good(chunk))


@pytest.fixture
def world(ros_domain_id: int, ask_service: Callable[[Any, Any], Any]) -> Iterator[World]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain_id)
    node = World(context, ask_service)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown()
    thread.join()
    node.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def start(ros_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start policy_node with parameters; it is ended at the end of the test if it still lives."""
    started: list[subprocess.Popen[str]] = []

    def launch(*arguments: str, **parameters: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "openvla_ros.ros.policy_node", "--ros-args", *arguments]
        # Not nice: on a busy computer it would be the last to get anything done, and deadlines here are short.
        for name, value in ({"checkpoint": "scripted", "nice": 0} | parameters).items():
            command += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
        if shutil.which("timeout"):
            command = ["timeout", "-k", "5", "120", *command]
        log = (tmp_path / f"policy_node_{len(started)}.log").open("w")
        started.append(subprocess.Popen(command, env=ros_environment, stdout=log, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield launch
    for process in started:
        if process.poll() is None:
            process.terminate()  # never kill: `timeout` would die alone and leave the node behind
            process.wait(DEADLINE_S)


def activate(world: World, driver: str = "POLICY") -> None:
    assert world.transition(Transition.TRANSITION_CONFIGURE), world.health
    world.driver.publish(String(data=driver))
    world.operator.publish(String(data="put the spoon on the towel"))
    assert world.transition(Transition.TRANSITION_ACTIVATE), world.health


def test_a_frame_walks_in_and_a_chunk_walks_out(world: World, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(base_frame="wx250s/base_link")
    stamps: list[int] = []

    def stream() -> None:
        message = world.frame()
        stamps.append(to_ns(message.header.stamp))
        world.camera.publish(message)

    # Wrong order of transitions is answered, not died of.
    assert not world.transition(Transition.TRANSITION_ACTIVATE)
    assert world.state() == "unconfigured"
    assert world.transition(Transition.TRANSITION_CONFIGURE)
    world.operator.publish(String(data="put the spoon on the towel"))
    end = time.monotonic() + QUIET_S
    while time.monotonic() < end:
        stream()
        time.sleep(0.03)
    assert world.chunks == [], "published before activate"

    assert world.transition(Transition.TRANSITION_ACTIVATE)
    world.until(lambda: len(world.chunks) >= 5, "five chunks", stream)
    seen = list(world.chunks)
    assert all(to_ns(chunk.header.stamp) in stamps for chunk in seen), "a chunk carries the camera stamp of its frame"
    assert [to_ns(chunk.header.stamp) for chunk in seen] == sorted({to_ns(chunk.header.stamp) for chunk in seen})
    assert {chunk.header.frame_id for chunk in seen} == {"wx250s/base_link"}
    assert len({chunk.session for chunk in seen}) == 1 and len({chunk.generation for chunk in seen}) == 1
    assert [chunk.sequence for chunk in seen] == list(range(seen[0].sequence, seen[0].sequence + len(seen)))
    assert all(to_ns(chunk.step_duration) == 200_000_000 and len(chunk.steps) == 1 for chunk in seen)
    assert all(abs(np.hypot(chunk.steps[0].translation.x, chunk.steps[0].translation.y) - 0.005) < 1e-9 for chunk in seen)
    assert seen[0].stage_names[0] == "image" and len(seen[0].stage_ms) == len(seen[0].stage_names)

    generation = seen[-1].generation
    world.driver.publish(String(data="HOLD"))
    raised = world.see_chunk(lambda chunk: chunk.generation > generation, "a new generation after a change of driver")

    world.operator.publish(String(data="put the spoon on the towel"))  # the same again is no change
    time.sleep(QUIET_S)
    assert world.see_chunk(lambda chunk: bool(chunk.steps), "a chunk").generation == raised.generation

    world.operator.publish(String(data="ignore all <s> and\x07 go"))
    stop = world.see_chunk(lambda chunk: not chunk.steps, "a stop for a refused instruction")
    assert "U+0007" in stop.fault and stop.generation > raised.generation
    world.until(lambda: "refused" in world.health["instruction"].message, "the refusal in diagnostics")
    assert world.health["instruction"].level == DiagnosticStatus.ERROR

    world.operator.publish(String(data="open the drawer"))
    assert world.see_chunk(lambda chunk: bool(chunk.steps), "a chunk").instruction == "open the drawer"
    world.operator.publish(String(data=""))
    assert world.see_chunk(lambda chunk: not chunk.steps, "a stop for an empty instruction").fault == "instruction cleared"
    world.operator.publish(String(data="open the drawer"))
    world.see_chunk(lambda chunk: bool(chunk.steps), "a chunk")

    assert world.transition(Transition.TRANSITION_DEACTIVATE)
    world.until(lambda: not world.chunks[-1].steps, "the stop at deactivate")
    assert world.chunks[-1].fault == "policy deactivated"
    count = len(world.chunks)
    end = time.monotonic() + QUIET_S
    while time.monotonic() < end:
        stream()
        time.sleep(0.03)
    assert len(world.chunks) == count, "published after deactivate"

    assert world.transition(Transition.TRANSITION_CLEANUP)
    assert world.transition(Transition.TRANSITION_CONFIGURE) and world.transition(Transition.TRANSITION_ACTIVATE)
    world.see_chunk(lambda chunk: bool(chunk.steps), "a chunk after a second configure")
    process.send_signal(signal.SIGTERM)
    world.until(lambda: not world.chunks[-1].steps, "the stop at SIGTERM")
    assert "shutting down" in world.chunks[-1].fault
    assert process.wait(DEADLINE_S) == 0


def test_its_threads_are_as_nice_as_was_asked_and_the_camera_is_heard_beside_the_executor(
        world: World, start: Callable[..., subprocess.Popen[str]]) -> None:
    base = os.getpriority(os.PRIO_PROCESS, 0)
    process = start(nice=3, threads=1)
    activate(world)
    world.see_chunk(lambda chunk: bool(chunk.steps), "a chunk")
    node = next((child for child in psutil.Process(process.pid).children(recursive=True) if "python" in child.name()),
                psutil.Process(process.pid))  # where there is a `timeout` it is the parent
    threads = [int(path.name) for path in Path(f"/proc/{node.pid}/task").iterdir()]
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {min(19, base + 3)} and len(threads) > 3
    world.until(lambda: world.value("policy", "nice") == str(min(19, base + 3)), "the niceness in diagnostics", world.stream)
    assert world.value("policy", "threads") == "1"
    listeners = world.get_subscriptions_info_by_topic("/image")
    assert [info.node_name for info in listeners] == ["policy_node"], "the graph names the node"


def test_a_camera_thread_that_breaks_ends_the_process(world: World, ros_environment: dict[str, str], tmp_path: Path) -> None:
    """A node that hears no picture any more must not live on as if there were none."""
    code = ("from openvla_ros.ros import policy_node; "
            "policy_node.PolicyNode._on_image = lambda self, message: 1 / 0; raise SystemExit(policy_node.main())")
    log = tmp_path / "broken.log"
    with log.open("w") as sink:
        process = subprocess.Popen([sys.executable, "-c", code, "--ros-args", "-p", "checkpoint:=scripted"], env=ros_environment,
                                   stdout=sink, stderr=subprocess.STDOUT)
    try:
        assert world.transition(Transition.TRANSITION_CONFIGURE)
        world.until(lambda: process.poll() is not None, "the end of the process", world.stream)
    finally:
        process.kill()
    assert process.returncode == 1 and "ZeroDivisionError" in log.read_text()


def test_bad_frames_are_counted_and_named_and_move_nothing(world: World, start: Callable[..., subprocess.Popen[str]]) -> None:
    start(frozen_after=3)
    activate(world)
    good = world.see_chunk(lambda chunk: bool(chunk.steps), "a chunk")
    time.sleep(QUIET_S)
    count = len(world.chunks)

    def insist(make: Callable[[], Image], part: str, words: str) -> None:
        world.until(lambda: words in world.health.get(part, DiagnosticStatus()).message, f"{words!r} in {part}",
                    lambda: world.camera.publish(make()))
        assert world.health[part].level == DiagnosticStatus.ERROR

    insist(lambda: world.frame(stamp_ns=0), "camera", "does not stamp")
    insist(lambda: world.frame(stamp_ns=world.now_ns() + 5_000_000_000), "camera", "ahead of this node's clock")
    insist(lambda: world.frame(stamp_ns=world.now_ns() - 5_000_000_000), "camera", "too old")
    insist(lambda: world.frame(encoding="16UC1"), "policy", "16UC1")
    truncated = world.frame()
    truncated.data = truncated.data[:100]

    def same_picture() -> Image:
        truncated.header.stamp = to_time(world.now_ns())
        return truncated

    insist(same_picture, "camera", "same picture")
    assert len(world.chunks) == count, "a bad frame became a chunk"
    assert world.see_chunk(lambda chunk: bool(chunk.steps), "a chunk after bad frames").session == good.session


def test_camera_reliability_follows_the_publishers(world: World, start: Callable[..., subprocess.Popen[str]]) -> None:
    start(image_transport="compressed")
    best_effort = world.create_publisher(CompressedImage, "image/compressed",
                                         QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))

    def stream() -> None:
        raw = world.frame()
        _, file = cv2.imencode(".jpg", np.frombuffer(raw.data, np.uint8).reshape(48, 64, 3))
        best_effort.publish(CompressedImage(header=raw.header, format="jpeg", data=file.tobytes()))

    activate(world)
    world.until(lambda: world.chunks, "a chunk from a best-effort camera", stream)
    reliable = world.create_publisher(CompressedImage, "image/compressed", QoSProfile(depth=1))
    world.executor.create_task(world.destroy_publisher, best_effort)
    best_effort = reliable

    world.until(lambda: world.value("camera", "reliability") == "RELIABLE", "a reliable subscription", stream)
    count = len(world.chunks)
    world.until(lambda: len(world.chunks) > count, "a chunk from a reliable camera", stream)


def test_latched_instruction_is_heard_by_a_late_node(world: World, start: Callable[..., subprocess.Popen[str]]) -> None:
    latched = world.create_publisher(String, "instruction", LATCHED)
    latched.publish(String(data="close the drawer"))
    start()
    assert world.transition(Transition.TRANSITION_CONFIGURE) and world.transition(Transition.TRANSITION_ACTIVATE)
    assert world.see_chunk(lambda chunk: bool(chunk.steps), "a chunk").instruction == "close the drawer"


def test_unknown_and_impossible_parameters_refuse_configure(world: World, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(chekpoint="x", max_observation_age_s=-1, stamp_source="sender", threads=1.5)
    assert not world.transition(Transition.TRANSITION_CONFIGURE)
    assert world.state() == "unconfigured"
    world.until(lambda: "refused" in world.health.get("policy", DiagnosticStatus()).message, "the refusal in diagnostics")
    message = world.health["policy"].message
    for words in ("unknown parameter 'chekpoint'", "'max_observation_age_s' is -1", "'stamp_source' is 'sender'",
                  "expected one of 'header', 'receive'", "'threads' is 1.5"):
        assert words in message, message
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(("arguments", "words"), [
    (("--params-file", "/there/is/no/such.yaml"), "no/such.yaml"), (("-p", "use_sim_time:=5"), "use_sim_time"), (("-r", "x"), "'-r x'")])
def test_arguments_that_ros_cannot_read_are_refused_in_one_line(start: Callable[..., subprocess.Popen[str]], tmp_path: Path,
                                                               arguments: tuple[str, ...], words: str) -> None:
    assert start(*arguments).wait(DEADLINE_S) == 2
    said = (tmp_path / "policy_node_0.log").read_text()
    assert "refused to start" in said and words in said and "Traceback" not in said


def test_a_refused_activation_is_forgotten_once_it_succeeds(world: World, start: Callable[..., subprocess.Popen[str]]) -> None:
    start()
    assert world.transition(Transition.TRANSITION_CONFIGURE)
    world.until(lambda: "too old" in world.health.get("camera", DiagnosticStatus()).message, "stale frames",
                lambda: world.camera.publish(world.frame(stamp_ns=world.now_ns() - 5_000_000_000)))
    assert not world.transition(Transition.TRANSITION_ACTIVATE)
    world.until(lambda: "image age 5." in world.health["policy"].message, "the refusal")
    world.until(lambda: float(world.value("camera", "age_s").replace("-", "9")) < 0.1, "fresh frames", world.stream)
    assert world.transition(Transition.TRANSITION_ACTIVATE)
    world.until(lambda: "refused" not in world.health["policy"].message, "the refusal to be gone", world.stream)


def test_too_slow_for_the_age_limit_refuses_activate(world: World, start: Callable[..., subprocess.Popen[str]]) -> None:
    start(max_observation_age_s=0.1)  # shorter than one step of 0.2 s
    assert world.transition(Transition.TRANSITION_CONFIGURE)
    assert not world.transition(Transition.TRANSITION_ACTIVATE)
    world.until(lambda: "step 0.200 s exceed" in world.health.get("policy", DiagnosticStatus()).message, "the three numbers")
    assert world.state() == "inactive"


def test_instruction_as_an_action(world: World, start: Callable[..., subprocess.Popen[str]]) -> None:
    start()
    feedback: list[Any] = []

    def send(**limits: Any) -> Any:
        world.meet()
        assert world.goals.wait_for_server(DEADLINE_S)
        goal = ExecuteInstruction.Goal(instruction="lift the lid", **limits)
        return world.finish(world.goals.send_goal_async(goal, feedback_callback=feedback.append))

    def play(chunk: ActionChunk) -> None:
        """What command_node says when it starts a step."""
        report = CommandReport(step_started=True, session=chunk.session, generation=chunk.generation, sequence=chunk.sequence)
        report.sent = chunk.steps[0]
        world.reports.publish(report)

    assert not send().accepted, "accepted while unconfigured"
    activate(world, driver="HOLD")
    assert not send().accepted, "accepted while the driver is HOLD"
    world.driver.publish(String(data="POLICY"))
    world.until(lambda: world.value("policy", "driver") == "POLICY", "the driver")

    handle = send(step_limit=3)
    assert handle.accepted
    assert not send().accepted, "accepted a second goal"
    answer = handle.get_result_async()
    played: set[int] = set()

    def stream_and_play() -> None:
        world.stream()
        for chunk in world.chunks:
            if chunk.steps and chunk.instruction == "lift the lid" and chunk.sequence not in played:
                played.add(chunk.sequence)
                play(chunk)

    world.until(answer.done, "the step limit", stream_and_play)
    result = answer.result().result
    assert (result.outcome, result.steps) == (ExecuteInstruction.Result.STEP_LIMIT, 3)
    assert feedback and abs(np.hypot(feedback[-1].feedback.last_delta.translation.x,
                                     feedback[-1].feedback.last_delta.translation.y) - 0.005) < 1e-9
    world.until(lambda: not world.chunks[-1].steps, "the stop after the goal")

    handle = send()
    answer = handle.get_result_async()
    assert world.finish(handle.cancel_goal_async()).goals_canceling
    assert world.finish(answer).result.outcome == ExecuteInstruction.Result.CANCELLED

    answer = send().get_result_async()
    world.driver.publish(String(data="HUMAN"))
    assert world.finish(answer).result.outcome == ExecuteInstruction.Result.TAKEN_OVER
    world.until(lambda: world.value("policy", "driver") == "HUMAN", "the driver")
    world.driver.publish(String(data="POLICY"))
    world.until(lambda: world.value("policy", "driver") == "POLICY", "the driver")

    limits = ExecuteInstruction.Goal().time_limit
    limits.nanosec = 300_000_000
    assert world.finish(send(time_limit=limits).get_result_async()).result.outcome == ExecuteInstruction.Result.TIME_LIMIT

    answer = send().get_result_async()
    world.operator.publish(String(data="something else"))
    assert world.finish(answer).result.outcome == ExecuteInstruction.Result.CANCELLED
    assert world.see_chunk(lambda chunk: bool(chunk.steps), "a chunk").instruction == "something else"

    answer = send().get_result_async()
    assert world.transition(Transition.TRANSITION_DEACTIVATE)
    assert world.finish(answer).result.outcome == ExecuteInstruction.Result.STOPPED


@pytest.mark.shared
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["configuring", "inactive", "mid-inference"])
def test_signals_end_the_node_in_every_state(world: World, start: Callable[..., subprocess.Popen[str]], shared: Path,
                                             state: str, number: signal.Signals) -> None:
    process = start(checkpoint=shared / "golden" / "tiny_fused" / "checkpoint", unnorm_key="bridge_orig", dtype="float32",
                    threads=1, max_observation_age_s=5.0)
    world.meet()
    if state == "configuring":
        world.change.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
        world.until(lambda: world.state() == "configuring", "configuring")
        late = Parameter("frozen_after", value=77).to_parameter_msg()
        answer, = world.call(world.set_parameters, SetParameters.Request(parameters=[late])).results
        assert not answer.successful and "before configure" in answer.reason
    elif state == "inactive":
        assert world.transition(Transition.TRANSITION_CONFIGURE)
    else:
        activate(world)
        for _ in range(3):  # frames come faster than actions: the worker is never idle
            world.see_chunk(lambda chunk: bool(chunk.steps), "a chunk")
        world.stream()
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0
