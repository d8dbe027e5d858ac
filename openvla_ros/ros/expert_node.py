"""The scripted expert of the simulation as a policy of its own: the true scene and an instruction in, action chunks out.

It sees what no policy may see, so its success says how good the command path is and nothing about a policy. It takes the place of
policy_node: same topics, same rules for session, generation and stop; no lifecycle, since there is nothing to load.

| topic | type | quality |
| --- | --- | --- |
| simulation/objects, joint_states | visualization_msgs/MarkerArray, sensor_msgs/JointState | reliable; best effort, depth 1 |
| instruction, driver | std_msgs/String | latched |
| action_chunk (out) | openvla_msgs/ActionChunk | reliable, depth 1; 20 Hz, whoever drives, while the instruction is a known task |
"""

from __future__ import annotations

import secrets
import sys
import threading
from collections import deque

from openvla_msgs.msg import ActionChunk as ActionChunkMessage
from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from visualization_msgs.msg import MarkerArray

from openvla_ros.contract import STEP_S, ActionChunk, ChunkIdentity
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.arm_listener import NEWEST_STATES
from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, SECOND_NS, to_chunk_message, to_ns
from openvla_ros.ros.diagnostics import OK, WARN, Diagnostics, Health
from openvla_ros.ros.lifetime import live
from openvla_ros.ros.parameters import Parameter, declare, read
from openvla_ros.ros.profile import read_robot
from openvla_ros.ros.scene_markers import from_markers
from openvla_ros.simulation.expert import act
from openvla_ros.simulation.task import SceneState, Task, parse

AT_START = "by starting the node again"

PARAMETERS = (
    Parameter("robot", "wx250s_sim", "Robot profile with the frame and the gripper: a name in config/robots or the path of a .yaml file.",
              locked=AT_START),
    Parameter("latency_s", 0.05, "It acts on what the scene was so long ago, as a policy does that has to think [simulated time].",
              unit="s", low=0.0, high=2.0, locked=AT_START),
)


class ExpertNode(Node):  # type: ignore[misc]
    """ROS name `expert_node`. Raises OpenvlaRosError for a wrong parameter or profile."""

    def __init__(self) -> None:
        super().__init__("expert_node")
        self.finished = threading.Event()
        declare(self, PARAMETERS, locked=lambda row: bool(row.locked))
        values = read(self, PARAMETERS)
        profile = read_robot(str(values["robot"]))
        if profile.gripper is None:
            raise ConfigurationError(f"robot profile {profile.name!r} has no gripper for its output, whose opening the expert must see.")
        self._gripper, self._frame = profile.gripper, profile.base_frame
        self._latency_ns = round(float(values["latency_s"]) * SECOND_NS)
        self._session, self._generation, self._sequence = secrets.randbits(64), 1, 0
        self._instruction, self._driver = "", ""
        self._task: Task | None = None
        self._opening = 1.0
        self._seen: deque[tuple[int, SceneState]] = deque(maxlen=100)
        self._chunks = self.create_publisher(ActionChunkMessage, "action_chunk", NEWEST_RELIABLE)
        self.create_subscription(String, "instruction", self._on_instruction, LATCHED)
        self.create_subscription(String, "driver", self._on_driver, LATCHED)
        self.create_subscription(JointState, "joint_states", self._on_states, NEWEST_STATES)
        self.create_subscription(MarkerArray, "simulation/objects", self._on_objects, NEWEST_RELIABLE)
        self._diagnostics = Diagnostics(self, {"expert": self._health})

    def farewell(self) -> None:
        """Tell the arm to stop, and wait until that was heard."""
        self._say_stop("expert_node is shutting down")
        self._chunks.wait_for_all_acked(Duration(seconds=0.3))

    def _on_instruction(self, message: String) -> None:
        if message.data == self._instruction:
            return
        self._instruction, self._task = message.data, parse(message.data)
        self._generation += 1
        if self._task is None:
            self._say_stop(f"the expert knows no task {message.data!r}")

    def _on_driver(self, message: String) -> None:
        if message.data != self._driver:
            self._driver, self._generation = message.data, self._generation + 1

    def _on_states(self, message: JointState) -> None:
        if self._gripper.joint in message.name:
            self._opening = self._gripper.opening(message.position[message.name.index(self._gripper.joint)])

    def _on_objects(self, message: MarkerArray) -> None:
        now_ns = to_ns(message.markers[0].header.stamp)
        if self._seen and now_ns <= self._seen[-1][0]:
            self._seen.clear()  # another start of the simulation
        self._seen.append((now_ns, from_markers(message, self._opening)))
        old_enough = [entry for entry in self._seen if entry[0] <= now_ns - self._latency_ns]
        if self._task is None or not old_enough:
            return
        stamp_ns, state = old_enough[-1]
        if self._task.colour in state.blocks:
            self._say(ActionChunk((act(state, self._task),), STEP_S, stamp_ns, self._instruction, "expert"))
        else:
            self._say(ActionChunk((), STEP_S, stamp_ns, self._instruction, "expert", fault=f"there is no {self._task.colour} block"))

    def _say_stop(self, reason: str) -> None:
        self._say(ActionChunk((), STEP_S, self._seen[-1][0] if self._seen else 0, self._instruction, "expert", fault=reason))

    def _say(self, chunk: ActionChunk) -> None:
        self._sequence += 1
        self._chunks.publish(to_chunk_message(chunk, ChunkIdentity(self._session, self._generation, self._sequence), self._frame))

    def _health(self) -> Health:
        values = {"instruction": self._instruction, "chunks": self._sequence}
        if self._task is None:
            return Health(WARN, f"no task: the instruction is {self._instruction!r}", values)
        return Health(OK, f"{self._task.kind} {self._task.colour}", values)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 after SIGINT and SIGTERM, 2 when a parameter is wrong."""
    return live(ExpertNode, arguments)


if __name__ == "__main__":
    sys.exit(main())
