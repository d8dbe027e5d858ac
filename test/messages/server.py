"""A process that answers in openvla_msgs: a chunk by a report, a driver by yes or no, an instruction by steps until a limit or a cancel."""

from __future__ import annotations

import threading

import rclpy
from openvla_msgs.action import ExecuteInstruction
from openvla_msgs.msg import ActionChunk, CommandReport, EndEffectorDelta
from openvla_msgs.srv import ResetScene, SetDriver
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node


class Server(Node):
    def __init__(self) -> None:
        super().__init__("server")
        self.pause = threading.Event()  # never set: paces the feedback
        self.reports = self.create_publisher(CommandReport, "command_report", 1)
        self.create_subscription(ActionChunk, "action_chunk", self.on_chunk, 1)
        self.create_service(SetDriver, "set_driver", self.on_set_driver)
        self.create_service(ResetScene, "reset_scene", self.on_reset_scene)
        ActionServer(self, ExecuteInstruction, "execute_instruction", self.execute, callback_group=ReentrantCallbackGroup(),
                     cancel_callback=lambda _: CancelResponse.ACCEPT)

    def on_chunk(self, chunk: ActionChunk) -> None:
        self.reports.publish(CommandReport(
            header=chunk.header, session=chunk.session, sequence=chunk.sequence, requested=chunk.steps[0], sent=chunk.steps[-1],
            rules=[chunk.instruction, *chunk.stage_names]))

    def on_set_driver(self, request: SetDriver.Request, response: SetDriver.Response) -> SetDriver.Response:
        response.success = request.driver == SetDriver.Request.POLICY
        response.reason = "" if response.success else "only the policy may drive here"
        return response

    def on_reset_scene(self, request: ResetScene.Request, response: ResetScene.Response) -> ResetScene.Response:
        response.success, response.reason, response.colours = request.seed == 2**64 - 1, "no scene but the last", ["red", "yellow"]
        return response

    def execute(self, goal: object) -> ExecuteInstruction.Result:
        step = 0
        while step < goal.request.step_limit:
            if goal.is_cancel_requested:
                goal.canceled()
                return ExecuteInstruction.Result(outcome=ExecuteInstruction.Result.CANCELLED, reason="as asked", steps=step)
            step += 1
            goal.publish_feedback(ExecuteInstruction.Feedback(step=step, last_delta=EndEffectorDelta(gripper=0.25)))
            self.pause.wait(0.02)
        goal.succeed()
        return ExecuteInstruction.Result(outcome=ExecuteInstruction.Result.STEP_LIMIT, reason=goal.request.instruction, steps=step)


def main() -> None:
    rclpy.init()
    node = Server()
    executor = MultiThreadedExecutor(num_threads=3)
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        executor.shutdown()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
