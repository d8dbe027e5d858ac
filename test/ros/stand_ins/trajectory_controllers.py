"""A stand-in for ros2_control with two joint_trajectory_controllers, by the source of ros2_controllers (humble, jazzy).

- A trajectory is refused as a whole: names that are not the controller's, no points, an end in the past (unless the stamp is zero,
  which means now), times that do not grow, a wrong length, a velocity other than zero at the end.
- A new one replaces the old at once. It starts at the measured state, or with `interpolate_from_desired_state` (as
  config/ros2_control says) at the state that was wanted.
- Between points: cubic where velocities are given, linear without.
- A trajectory that ended holds its last point. The controllers run at 50 Hz.

The arm below sags by `sag_rad` and follows a cycle later. Run as a process; what is refused is said on `refusals`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from openvla_ros.contract import FloatArray
from openvla_ros.ros.convert import to_ns

PERIOD_S = 0.02
ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
LAST_VELOCITY = 1.2e-7  # single precision epsilon, as the controller compares


class Controller:
    """One joint_trajectory_controller: `update` gives what it wants of the joints at a time [s]."""

    def __init__(self, joints: Sequence[str], start: FloatArray, from_desired: bool) -> None:
        self.joints, self.from_desired = tuple(joints), from_desired
        self.wanted, self.velocity = start.copy(), np.zeros(len(joints))
        self.knots: list[tuple[float, FloatArray, FloatArray | None]] = []

    def refusal(self, message: JointTrajectory, now_s: float) -> str:
        count, times = len(self.joints), [to_ns(point.time_from_start) / 1e9 for point in message.points]
        if sorted(message.joint_names) != sorted(self.joints):
            return f"joints {list(message.joint_names)}"
        if not times:
            return "no points"
        stamp_s = to_ns(message.header.stamp) / 1e9
        if stamp_s and stamp_s + times[-1] < now_s:
            return f"ends {now_s - stamp_s - times[-1]:.3f} s in the past"
        if any(later <= earlier for earlier, later in itertools.pairwise(times)):
            return f"times do not grow: {times}"
        if any(len(point.positions) != count or len(point.velocities) not in (0, count) for point in message.points):
            return "wrong length"
        if any(abs(velocity) > LAST_VELOCITY for velocity in message.points[-1].velocities):
            return f"ends with velocity {list(message.points[-1].velocities)}"
        return ""

    def take(self, message: JointTrajectory, now_s: float, measured: FloatArray) -> None:
        order = [message.joint_names.index(name) for name in self.joints]
        start_s = to_ns(message.header.stamp) / 1e9 or now_s
        first = (self.wanted, self.velocity) if self.from_desired else (measured, np.zeros(len(measured)))
        self.knots = [(now_s, *first)] + [
            (start_s + to_ns(point.time_from_start) / 1e9, np.array(point.positions)[order],
             np.array(point.velocities)[order] if point.velocities else None) for point in message.points]

    def update(self, now_s: float) -> FloatArray:
        for (t0, p0, v0), (t1, p1, v1) in zip(self.knots, self.knots[1:], strict=False):
            if t0 <= now_s < t1:
                self.wanted, self.velocity = between((now_s - t0) / (t1 - t0), t1 - t0, p0, v0, p1, v1)
                return self.wanted
        if self.knots and now_s >= self.knots[-1][0]:
            self.wanted, self.velocity = self.knots[-1][1], np.zeros(len(self.joints))
        return self.wanted


def between(u: float, span_s: float, p0: FloatArray, v0: FloatArray | None, p1: FloatArray,
            v1: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    """Position and velocity at the fraction u of a segment."""
    if v0 is None or v1 is None:
        return p0 + u * (p1 - p0), (p1 - p0) / span_s
    a, b = v0 * span_s - (p1 - p0), (p1 - p0) - v1 * span_s
    position = (1 - u) * p0 + u * p1 + u * (1 - u) * ((1 - u) * a + u * b)
    slope = (p1 - p0) + (1 - 2 * u) * ((1 - u) * a + u * b) + u * (1 - u) * (b - a)
    return position, slope / span_s


class Controllers(Node):
    """arm_controller and gripper_controller, with the hardware below."""

    def __init__(self) -> None:
        super().__init__("controller_manager")
        start = np.array(self.declare_parameter("start", [0.0, -0.4, 0.3, 0.0, 1.6, 0.0]).value)
        from_desired = bool(self.declare_parameter("interpolate_from_desired_state", True).value)
        self.sag = np.full(len(ARM), float(self.declare_parameter("sag_rad", 0.0).value))
        self.controllers = {"arm_controller": Controller(ARM, start, from_desired),
                            "gripper_controller": Controller(("left_finger",), np.array([0.02]), from_desired)}
        self.measured = {"arm_controller": start - self.sag, "gripper_controller": np.array([0.02])}
        self.refusals = self.create_publisher(String, "refusals", 10)
        self.states = self.create_publisher(JointState, "joint_states", 10)
        for name in self.controllers:
            self.create_subscription(JointTrajectory, f"{name}/joint_trajectory",
                                     lambda message, name=name: self.on_trajectory(name, message), 1)
        self.create_timer(PERIOD_S, self.cycle)
        self.create_timer(0.01, self.publish_state)

    def now_s(self) -> float:
        return self.get_clock().now().nanoseconds / 1e9

    def on_trajectory(self, name: str, message: JointTrajectory) -> None:
        controller = self.controllers[name]
        if refusal := controller.refusal(message, self.now_s()):
            self.refusals.publish(String(data=f"{name}: {refusal}"))
        else:
            controller.take(message, self.now_s(), self.measured[name])

    def cycle(self) -> None:
        for name, controller in self.controllers.items():
            self.measured[name] = controller.wanted - (self.sag if name == "arm_controller" else 0.0)
            controller.update(self.now_s())

    def publish_state(self) -> None:
        arm, finger = self.measured.values()
        message = JointState(name=[*ARM, "left_finger"], position=[*arm.tolist(), *finger.tolist()])
        message.header.stamp = self.get_clock().now().to_msg()
        self.states.publish(message)


if __name__ == "__main__":
    rclpy.init()
    try:
        rclpy.spin(Controllers())
    except (KeyboardInterrupt, ExternalShutdownException):
        rclpy.try_shutdown()
