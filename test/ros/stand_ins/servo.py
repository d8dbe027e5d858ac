"""A stand-in for MoveIt Servo and the controllers below it. It obeys what moveit_servo's source says, branches jazzy and humble.

- A command is dropped when `now - header.stamp >= 0.1 s`, whatever its stamp means; then the arm halts.
- Jazzy: only the command type that was switched to is taken (the first one is joint jogs). Humble: nothing is taken before
  `~/start_servo`, and poses never.
- Twists and poses in another frame than the planning frame are invalid.
- Jazzy caps the norms of a twist, and of what a pose asks for in a cycle, at scale.linear and scale.rotational without a word.
- Jazzy lays its commands `max_expected_latency` into the future, so the arm does everything so much later.
- While it halts for a singularity or a collision nothing moves. Status: ServoStatus on Jazzy, Int8 with other codes on Humble.

Not modelled: smoothing, braking near singularities, collisions; a test sets a status through `~/pretend_status`.
Run as a process: `servo.py --ros-args -p distro:=jazzy`. Joint states of the arm come out at 100 Hz.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState
from std_msgs.msg import Int8
from std_srvs.srv import SetBool, Trigger

from openvla_ros.action.kinematics import Kinematics
from openvla_ros.action.pose import distance
from openvla_ros.contract import FloatArray, Pose
from openvla_ros.ros.profile import read_robot
from openvla_ros.share import share_folder

TIMEOUT_S, PERIOD_S, LATENCY_S = 0.1, 0.02, 0.1
CAP_M_S, CAP_RAD_S = 0.3, 1.5  # as config/servo/wx250s_servo.yaml
JOINT_JOG, TWIST, POSE = 0, 1, 2
INVALID, NO_WARNING = -1, 0
HALTS = {"jazzy": (2, 5), "humble": (2, 4)}  # for a singularity, for a collision


class Servo(Node):
    """Node `servo_node`."""

    def __init__(self) -> None:
        super().__init__("servo_node")
        self.jazzy = self.declare_parameter("distro", "jazzy").value == "jazzy"
        start = np.array(self.declare_parameter("start", [0.0, -0.4, 0.3, 0.0, 1.6, 0.0]).value)
        profile = read_robot(self.declare_parameter("robot", "wx250s").value)
        self.frame, self.names = profile.base_frame, list(profile.arm.joints)
        urdf = (share_folder() / "config" / "robots" / profile.arm.urdf).read_text()
        self.kinematics = Kinematics(urdf, profile.arm.ee_link, self.names, profile.base_frame)
        self.commanded = start  # what the controllers were told last
        self.window: deque[tuple[float, FloatArray]] = deque([(0.0, start)])  # when it reaches the arm
        self.accepts = JOINT_JOG if self.jazzy else TWIST
        self.paused = not self.jazzy
        self.command: TwistStamped | PoseStamped | None = None
        self.status, self.pretended = NO_WARNING, NO_WARNING

        self.create_subscription(TwistStamped, "~/delta_twist_cmds", lambda message: self.take(message, TWIST), 1)
        self.create_subscription(Int8, "~/pretend_status", self.on_pretend, 1)
        if self.jazzy:
            from moveit_msgs.msg import ServoStatus
            from moveit_msgs.srv import ServoCommandType

            self.create_subscription(PoseStamped, "~/pose_target_cmds", lambda message: self.take(message, POSE), 1)
            self.create_service(ServoCommandType, "~/switch_command_type", self.on_switch)
            self.create_service(SetBool, "~/pause_servo", self.on_pause)
            self.statuses = self.create_publisher(ServoStatus, "~/status", 1)
            self.say = lambda code: self.statuses.publish(ServoStatus(code=code))
        else:
            self.create_service(Trigger, "~/start_servo", self.on_start)
            self.statuses = self.create_publisher(Int8, "~/status", 1)
            self.say = lambda code: self.statuses.publish(Int8(data=code))
        self.states = self.create_publisher(JointState, "joint_states", 10)
        self.create_timer(PERIOD_S, self.cycle)
        self.create_timer(0.01, self.publish_state)

    def take(self, message: TwistStamped | PoseStamped, kind: int) -> None:
        self.command = message if kind == self.accepts else None

    def on_pretend(self, message: Int8) -> None:
        self.pretended = message.data

    def on_switch(self, request: object, response: object) -> object:
        if request.command_type in (JOINT_JOG, TWIST, POSE):
            self.accepts = request.command_type
        response.success = request.command_type == self.accepts
        return response

    def on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.paused, response.success = request.data, True
        return response

    def on_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.paused, response.success = False, True
        return response

    def now_s(self) -> float:
        return self.get_clock().now().nanoseconds / 1e9

    def arm(self) -> FloatArray:
        """Where the arm is now."""
        while len(self.window) > 1 and self.window[1][0] <= self.now_s():
            self.window.popleft()
        return self.window[0][1]

    def cycle(self) -> None:
        if self.paused:
            return
        self.status = self.pretended
        command, halted = self.command, self.pretended in HALTS["jazzy" if self.jazzy else "humble"]
        if command is not None and not halted:
            age_s = (self.get_clock().now() - Time.from_msg(command.header.stamp)).nanoseconds / 1e9
            if age_s >= TIMEOUT_S:
                self.command = None
            elif command.header.frame_id != self.frame:
                self.command, self.status = None, INVALID
            else:
                self.follow(command)
        self.say(self.status)

    def follow(self, command: TwistStamped | PoseStamped) -> None:
        """One cycle towards a pose, or along a twist."""
        pose = self.kinematics.forward(self.commanded)
        if isinstance(command, TwistStamped):
            linear, angular = command.twist.linear, command.twist.angular
            move, turn = (PERIOD_S * np.array([part.x, part.y, part.z]) for part in (linear, angular))
        else:
            position, q = command.pose.position, command.pose.orientation
            move = np.array([position.x, position.y, position.z]) - pose.position_m
            turn = (Rotation.from_quat([q.x, q.y, q.z, q.w]) * Rotation.from_matrix(pose.rotation).inv()).as_rotvec()
        if self.jazzy:
            move, turn = capped(move, CAP_M_S * PERIOD_S), capped(turn, CAP_RAD_S * PERIOD_S)
        target = Pose(pose.position_m + move, Rotation.from_rotvec(turn).as_matrix() @ pose.rotation)
        if distance(pose, target) == (0.0, 0.0):
            return
        self.commanded = self.kinematics.inverse(target, self.commanded).positions
        self.window.append((self.now_s() + (LATENCY_S if self.jazzy else PERIOD_S), self.commanded))

    def publish_state(self) -> None:
        message = JointState(name=self.names, position=self.arm().tolist())
        message.header.stamp = self.get_clock().now().to_msg()
        self.states.publish(message)


def capped(vector: FloatArray, length: float) -> FloatArray:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-12))


if __name__ == "__main__":
    rclpy.init()
    try:
        rclpy.spin(Servo())
    except (KeyboardInterrupt, ExternalShutdownException):
        rclpy.try_shutdown()
