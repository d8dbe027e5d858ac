"""A stand-in for the Interbotix driver xs_sdk with a wx250s, by its source and its configuration files (branch humble).

- `commands/joint_group` for the group `arm`: goal positions in rad; limits are not checked. The motors plan each goal from where
  they are, over Profile_Velocity ms with ramps of Profile_Acceleration ms (profile type time), and start anew with the next goal.
- `commands/joint_single` for `gripper`: mode pwm holds the value until the next one comes; linear_position is metres between the fingers.
- `get_robot_info`, `get_motor_registers`, `set_motor_registers`; joint states at 100 Hz, fingers last.

Run as a process. Parameters say its modes, and may change meanwhile.
On `events` it says each register that is set; on `pwm` what the gripper's motor gets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import rclpy
from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
from interbotix_xs_msgs.srv import RegisterValues, RobotInfo
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, String

from openvla_ros.contract import FloatArray

ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
PERIOD_S = 0.01
FINGER_LOW_M, FINGER_HIGH_M = 0.014, 0.038  # mechanical ends, just outside the limits 0.015 and 0.037
FINGER_M_S_PER_PWM, FRICTION_PWM = 0.0002, 100.0  # open to closed in 0.3 s


class Driver(Node):
    """Node `xs_sdk`."""

    def __init__(self) -> None:
        super().__init__("xs_sdk")
        start = self.declare_parameter("start", [0.0, -0.4, 0.3, 0.0, 1.6, 0.0]).value
        for name, value in (("arm_mode", "position"), ("gripper_mode", "pwm"), ("profile_type", "time"), ("torque", True)):
            self.declare_parameter(name, value)
        self.registers = {"Profile_Velocity": 2000, "Profile_Acceleration": 300}  # as the driver is shipped
        self.positions, self.velocities = np.array(start), np.zeros(len(ARM))
        self.plan: tuple[float, FloatArray, FloatArray, FloatArray] | None = None
        self.finger_m, self.pwm, self.obstacle_m = 0.020, 0.0, FINGER_LOW_M
        self.create_subscription(JointGroupCommand, "commands/joint_group", self.on_group, 10)
        self.create_subscription(JointSingleCommand, "commands/joint_single", self.on_single, 10)
        self.create_subscription(Float64, "obstacle", self.on_obstacle, 1)  # something between the fingers, from now on
        self.create_service(RobotInfo, "get_robot_info", self.on_info)
        self.create_service(RegisterValues, "get_motor_registers", self.on_get)
        self.create_service(RegisterValues, "set_motor_registers", self.on_set)
        self.states = self.create_publisher(JointState, "joint_states", 10)
        self.events, self.pwms = self.create_publisher(String, "events", 10), self.create_publisher(Float64, "pwm", 10)
        self.create_timer(PERIOD_S, self.cycle)

    def now_s(self) -> float:
        return self.get_clock().now().nanoseconds / 1e9

    def setting(self, name: str) -> Any:
        return self.get_parameter(name).value

    def on_group(self, message: JointGroupCommand) -> None:
        if message.name != "arm" or len(message.cmd) != len(ARM) or self.setting("arm_mode") != "position" or not self.setting("torque"):
            self.events.publish(String(data=f"dropped {message.name} {len(message.cmd)}"))
            return
        self.plan = (self.now_s(), self.positions, self.velocities, np.array(message.cmd, dtype=np.float64))

    def on_single(self, message: JointSingleCommand) -> None:
        if message.name != "gripper":
            self.events.publish(String(data=f"dropped {message.name}"))
        elif self.setting("gripper_mode") == "pwm":
            self.pwm = float(message.cmd)
            self.pwms.publish(Float64(data=self.pwm))
        else:
            self.finger_m = float(np.clip(message.cmd / 2.0, FINGER_LOW_M, FINGER_HIGH_M))

    def on_obstacle(self, message: Float64) -> None:
        self.obstacle_m = message.data

    def on_info(self, request: RobotInfo.Request, response: RobotInfo.Response) -> RobotInfo.Response:
        response.mode, response.profile_type = self.setting(f"{request.name}_mode"), self.setting("profile_type")
        response.joint_names = list(ARM) if request.name == "arm" else ["left_finger"]
        response.num_joints, response.name = len(response.joint_names), [request.name]
        return response

    def on_get(self, request: RegisterValues.Request, response: RegisterValues.Response) -> RegisterValues.Response:
        value = int(self.setting("torque")) if request.reg == "Torque_Enable" else self.registers[request.reg]
        response.values = [value] * (len(ARM) if request.cmd_type == "group" else 1)
        return response

    def on_set(self, request: RegisterValues.Request, response: RegisterValues.Response) -> RegisterValues.Response:
        self.registers[request.reg] = request.value
        self.events.publish(String(data=f"{request.name} {request.reg} {request.value}"))
        return response

    def cycle(self) -> None:
        if self.plan is not None:
            start_s, p0, v0, goal = self.plan
            total_s, ramp_s = self.registers["Profile_Velocity"] / 1e3, self.registers["Profile_Acceleration"] / 1e3
            self.positions, self.velocities = timed_profile(self.now_s() - start_s, total_s, ramp_s, p0, v0, goal)
        if abs(self.pwm) > FRICTION_PWM:
            moved_m = self.finger_m + self.pwm * FINGER_M_S_PER_PWM * PERIOD_S
            self.finger_m = float(np.clip(moved_m, max(FINGER_LOW_M, self.obstacle_m), FINGER_HIGH_M))
        message = JointState(name=[*ARM, "gripper", "left_finger", "right_finger"],
                             position=[*self.positions.tolist(), 0.0, self.finger_m, -self.finger_m],
                             velocity=[*self.velocities.tolist(), 0.0, 0.0, 0.0], effort=[0.0] * 9)
        message.header.stamp = self.get_clock().now().to_msg()
        self.states.publish(message)


def timed_profile(t: float, total_s: float, ramp_s: float, p0: FloatArray, v0: FloatArray,
                  goal: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Position and velocity t after a goal came: ramp from v0 to a cruising speed, cruise, ramp to rest at the goal at total_s."""
    ramp_s = max(min(ramp_s, total_s / 2.0), 1e-6)
    cruise = (goal - p0 - v0 * ramp_s / 2.0) / (total_s - ramp_s)
    if t >= total_s:
        return goal, np.zeros_like(goal)
    if t < ramp_s:
        velocity = v0 + (cruise - v0) * (t / ramp_s)
        return p0 + (v0 + velocity) / 2.0 * t, velocity
    left_s = total_s - t
    if left_s >= ramp_s:
        return goal - cruise * (left_s - ramp_s / 2.0), cruise
    velocity = cruise * (left_s / ramp_s)
    return goal - velocity / 2.0 * left_s, velocity


if __name__ == "__main__":
    rclpy.init()
    try:
        rclpy.spin(Driver())
    except (KeyboardInterrupt, ExternalShutdownException):
        rclpy.try_shutdown()
