"""What a recording says about the nodes of the day is what they said themselves, however late; until then it is unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic

import pytest
import rclpy
import yaml
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from openvla_ros.ros import recorder_facts
from openvla_ros.ros.profile import profile_path
from openvla_ros.ros.recorder_facts import Facts

pytestmark = pytest.mark.ros


@pytest.fixture
def executor(ros_domain_id: int) -> Iterator[SingleThreadedExecutor]:
    rclpy.init()
    made = SingleThreadedExecutor()
    yield made
    nodes = made.get_nodes()
    made.shutdown()
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown()


def test_a_node_that_answers_late_is_unknown_until_then(executor: SingleThreadedExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ANSWER_S", 0.05), ("LONGEST_S", 0.1), ("PATIENCE_S", 1.0)):
        monkeypatch.setattr(recorder_facts, name, value)
    recorder, busy = Node("recorder"), Node("command_node")
    busy.declare_parameter("robot", "wx250s_sim")
    executor.add_node(recorder)
    facts = Facts(recorder)

    def come_to(found: Callable[[], bool]) -> None:
        until_s = monotonic() + 30.0
        while not found() and monotonic() < until_s:
            facts.look()
            executor.spin_once(timeout_sec=0.02)
        assert found()

    come_to(lambda: not facts.settled())  # it was found, and asked
    come_to(facts.settled)  # nobody waits for it any longer: it is too busy
    unknown = "unknown: command_node did not answer"
    assert facts.texts()["openvla_ros.robot"] == facts.texts()["openvla_ros.parameters./command_node"] == unknown
    assert "openvla_ros.robot_profile" not in facts.texts() and "openvla_ros.policy_profile" not in facts.texts()
    executor.add_node(busy)
    come_to(lambda: facts.texts()["openvla_ros.robot"] != unknown)
    assert facts.texts()["openvla_ros.robot"] == "wx250s_sim"
    assert facts.texts()["openvla_ros.robot_profile"] == profile_path("wx250s_sim").read_text(encoding="utf-8")
    assert yaml.safe_load(facts.texts()["openvla_ros.parameters./command_node"])["robot"] == "wx250s_sim"
    assert facts.texts()["openvla_ros.policy"] == "unknown: policy_node did not answer"
