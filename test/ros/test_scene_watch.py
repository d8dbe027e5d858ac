"""What a run says about the simulated scene: the words, the verdicts, and what a step is."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs ROS")
pytest.importorskip("mujoco", reason="needs the simulation")
from geometry_msgs.msg import Point
from openvla_msgs.msg import CommandReport
from sensor_msgs.msg import JointState
from visualization_msgs.msg import Marker, MarkerArray

from openvla_ros.ros.convert import to_time
from openvla_ros.ros.profile import read_robot
from openvla_ros.ros.scene_watch import Attempt, SceneWatch

pytestmark = pytest.mark.ros

STEP_NS = 200_000_000


@pytest.fixture
def watch() -> SceneWatch:
    gripper = read_robot("wx250s_sim").gripper
    assert gripper is not None
    return SceneWatch(gripper)


def scene(now_ns: int, red_z: float = 0.016, held: str = "", tool: tuple[float, float, float] = (0.3, 0.0, 0.2)) -> MarkerArray:
    places = {"plate": (0.3, 0.1, 0.002), "tool": tool, "red": (0.2, 0.0, red_z), "blue": (0.3, 0.1, 0.02)}
    places |= {"held": tool} if held else {}
    markers = []
    for name, place in places.items():
        marker = Marker(ns=name, action=Marker.ADD, text=held if name == "held" else "")
        marker.header.stamp, marker.pose.position = to_time(now_ns), Point(x=place[0], y=place[1], z=place[2])
        markers.append(marker)
    return MarkerArray(markers=markers)


def report(now_ns: int, driver: int = CommandReport.POLICY, step: bool = False) -> CommandReport:
    message = CommandReport(driver=driver, step_started=step)
    message.header.stamp = to_time(now_ns)
    return message


def test_places_are_told_in_words(watch: SceneWatch) -> None:
    assert watch.objects() == "" and not watch.seen
    watch.on_objects(scene(1))
    assert watch.objects() == "red block: on the table; blue block: on the plate" and watch.seen
    watch.on_objects(scene(2, red_z=0.12, held="red"))
    assert watch.objects().startswith("red block: held, 12 cm high")
    watch.on_objects(scene(3, red_z=0.12))
    assert watch.objects().startswith("red block: 12 cm high")
    watch.on_objects(MarkerArray(markers=[Marker(ns="red")]))
    assert watch.objects().startswith("red block: 12 cm high"), "half a scene changes nothing"


def test_steps_count_from_the_first_one_and_while_the_policy_drives(watch: SceneWatch) -> None:
    assert watch.over and watch.verdict() == ""
    watch.on_instruction("pick up the red block")
    for step in range(1, 4):
        watch.on_objects(scene(step * STEP_NS))
    assert watch.verdict() == "step 0 of 45", "nothing was started yet"
    watch.on_report(report(10 * STEP_NS, step=True))
    for tick in range(100, 141):  # ten ticks are a step
        watch.on_objects(scene(tick * STEP_NS // 10))
    assert watch.verdict() == "step 4 of 45" and not watch.over
    watch.on_report(report(15 * STEP_NS, driver=CommandReport.HUMAN))
    watch.on_objects(scene(15 * STEP_NS))
    assert watch.verdict() == "step 4 of 45"
    watch.on_report(report(16 * STEP_NS))
    watch.on_objects(scene(16 * STEP_NS, red_z=0.1, held="red"))
    assert watch.verdict() == "done after 5 steps" and watch.over
    watch.on_instruction("pick up the red block")
    assert watch.over, "the same again is no news"
    watch.close()
    watch.on_instruction("")
    assert watch.attempts == [Attempt("pick up the red block", "done", 5, "")]
    assert watch.verdict() == "done after 5 steps", "what it said last stays for the last picture"


@pytest.mark.parametrize(("instruction", "steps", "verdict", "attempt"), [
    ("pick up the red block", 45, "not done after 45 steps", Attempt("pick up the red block", "not done", 45, "")),
    ("pick up the red block", 7, "step 7 of 45", Attempt("pick up the red block", "broken off", 7, "")),
    ("make a cup of tea", 70, "none of the known tasks: nobody judges it", Attempt("make a cup of tea", "no verdict", 70, "")),
    ("pick up the green block", 45, "there is no green block here", Attempt("pick up the green block", "no verdict", 45, ""))])
def test_how_an_attempt_ends(watch: SceneWatch, instruction: str, steps: int, verdict: str, attempt: Attempt) -> None:
    watch.on_objects(scene(1))
    watch.on_instruction(instruction)
    watch.on_report(report(2, step=True))
    for step in range(1, steps + 1):
        watch.on_objects(scene(2 + step * STEP_NS))
    assert watch.verdict() == verdict and watch.over == (attempt.outcome != "broken off")
    watch.on_instruction("")
    assert watch.attempts == [attempt] and watch.over


def test_another_block_is_named(watch: SceneWatch) -> None:
    watch.on_instruction("pick up the blue block")
    watch.on_report(report(1, step=True))
    watch.on_objects(scene(1 + STEP_NS, red_z=0.1, held="red"))
    assert watch.verdict() == "step 1 of 45, touched the red block"


def test_the_opening_is_that_of_the_finger(watch: SceneWatch) -> None:
    watch.on_joints(JointState(name=["waist", "left_finger"], position=[0.5, 0.026]))
    assert watch.opening == pytest.approx(0.5)
    watch.on_joints(JointState(name=["waist"], position=[0.5]))
    assert watch.opening == pytest.approx(0.5)
