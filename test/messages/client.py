"""A process that talks to server.py by topic, service and action, and fails by assertion. Prints where openvla_msgs was found."""

from __future__ import annotations

import time
from collections.abc import Callable

import openvla_msgs
import rclpy
from openvla_msgs.action import ExecuteInstruction
from openvla_msgs.msg import ActionChunk, CommandReport, EndEffectorDelta
from openvla_msgs.srv import ResetScene, SetDriver
from rclpy.action import ActionClient
from rclpy.node import Node

DEADLINE_S = 20.0


def wait(node: Node, met: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not met():
        assert time.monotonic() < end, f"no {what} within {DEADLINE_S} s"
        rclpy.spin_once(node, timeout_sec=0.1)


def check_topic(node: Node) -> None:
    reports: list[CommandReport] = []
    node.create_subscription(CommandReport, "command_report", reports.append, 1)
    publisher = node.create_publisher(ActionChunk, "action_chunk", 1)
    wait(node, lambda: publisher.get_subscription_count() == 1 and node.count_publishers("command_report") == 1, "server")
    first, last = EndEffectorDelta(gripper=1.0), EndEffectorDelta(gripper=0.5)
    first.translation.x, last.rotation.z = 0.0125, -0.25
    chunk = ActionChunk(session=2**64 - 1, generation=2, sequence=3, steps=[first, last], instruction="put the broccoli in the pot",
                        token_ids=[31872, -1], stage_names=["vision", "decode"], stage_ms=[1.5, 2.5])
    chunk.header.frame_id = "wx250s/base_link"
    chunk.header.stamp.sec = 1_700_000_000
    publisher.publish(chunk)
    wait(node, lambda: bool(reports), "command report")
    report = reports[0]
    assert report.header == chunk.header
    assert (report.session, report.sequence) == (2**64 - 1, 3)
    assert (report.requested, report.sent) == (first, last)
    assert report.rules == ["put the broccoli in the pot", "vision", "decode"]


def check_service(node: Node) -> None:
    client = node.create_client(SetDriver, "set_driver")
    assert client.wait_for_service(DEADLINE_S)
    answers = [client.call_async(SetDriver.Request(driver=driver)) for driver in (SetDriver.Request.POLICY, SetDriver.Request.HUMAN)]
    wait(node, lambda: all(answer.done() for answer in answers), "answers of set_driver")
    results = [answer.result() for answer in answers]
    assert [(result.success, result.reason) for result in results] == [(True, ""), (False, "only the policy may drive here")]


def check_scene(node: Node) -> None:
    client = node.create_client(ResetScene, "reset_scene")
    assert client.wait_for_service(DEADLINE_S)
    answers = [client.call_async(ResetScene.Request(seed=seed)) for seed in (2**64 - 1, 0)]
    wait(node, lambda: all(answer.done() for answer in answers), "answers of reset_scene")
    assert [answer.result().success for answer in answers] == [True, False]
    assert list(answers[0].result().colours) == ["red", "yellow"]


def check_action(node: Node, *, cancel: bool) -> None:
    feedback: list[ExecuteInstruction.Feedback] = []
    client = ActionClient(node, ExecuteInstruction, "execute_instruction")
    assert client.wait_for_server(DEADLINE_S)
    goal = ExecuteInstruction.Goal(instruction="wipe the table", step_limit=100_000 if cancel else 5)
    sent = client.send_goal_async(goal, feedback_callback=lambda message: feedback.append(message.feedback))
    wait(node, sent.done, "answer to the goal")
    handle = sent.result()
    assert handle.accepted
    done = handle.get_result_async()
    wait(node, lambda: len(feedback) > 2, "feedback")
    if cancel:
        handle.cancel_goal_async()
    wait(node, done.done, "result")
    result = done.result().result
    assert feedback[0].last_delta.gripper == 0.25
    if cancel:
        assert (result.outcome, result.reason) == (ExecuteInstruction.Result.CANCELLED, "as asked")
        assert 3 <= result.steps < 100_000
    else:
        assert (result.outcome, result.reason, result.steps) == (ExecuteInstruction.Result.STEP_LIMIT, "wipe the table", 5)


def main() -> None:
    rclpy.init()
    node = Node("client")
    try:
        check_topic(node)
        check_service(node)
        check_scene(node)
        check_action(node, cancel=False)
        check_action(node, cancel=True)
    finally:
        node.destroy_node()
        rclpy.shutdown()
    print(openvla_msgs.__path__[0])


if __name__ == "__main__":
    main()
