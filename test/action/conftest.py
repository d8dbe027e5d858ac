"""A pilot on simulated time, and the arm that holds each twist until the next tick. Nothing here sleeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.action.command import Twist
from openvla_ros.action.kinematics import Kinematics
from openvla_ros.action.pilot import Decision, Inputs, Now, Pilot, Settings
from openvla_ros.action.pose import from_rpy
from openvla_ros.action.teleop import TeleopRequest
from openvla_ros.contract import Action, ActionChunk, ChunkIdentity, FloatArray, Pose, ReceivedChunk, RobotState
from openvla_ros.robot import Arm, Box, GripperProfile, Limits, OutputProfile, RobotProfile

SECOND_NS = 1_000_000_000
ROS_START_NS = 1_700_000_000 * SECOND_NS
TICK_START_NS = 5 * SECOND_NS  # the steady clock counts from another origin

LIMITS = Limits(0.05, 0.25, 0.25, 1.25, 2.5, 12.0, 0.06, 0.3, Box((0.1, 0.45), (-0.2, 0.25), (-0.01, 0.3)))
PROFILE = RobotProfile(name="arm", real=False, base_frame="arm/base_link", output="servo_twist",
                       outputs={"servo_twist": OutputProfile("delta_twist_cmds", "none", {})}, grippers={}, limits=LIMITS, arm=None)
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
WIDOWX = RobotProfile(
    name="arm", real=True, base_frame="arm/base_link", output="servo_twist",
    outputs={name: OutputProfile("commands", "joint_trajectory", {}) for name in ("servo_twist", "interbotix")},
    grippers={"joint_trajectory": GripperProfile("gripper", "left_finger", 0.010, 0.035, {})}, limits=LIMITS,
    arm=Arm(JOINTS, "wx250s/ee_gripper_link", effort=(800, 1000, 600, 600, 600, 700), sleep=(0.0, -1.80, 1.55, 0.0, 0.8, 0.0),
            start_poses={"bridge": (0.3, 0.0, 0.15, 0.0, 1.5707963, 0.0), "openvla": (0.3, -0.09, 0.26, 0.0, 1.3003316, 0.0)}))


class Bench:
    """Time runs from 0; `at` says when chunks arrive [s], `sent` is what the arm got at which time [ns]."""

    def __init__(self, profile: RobotProfile = PROFILE, kinematics: Kinematics | None = None, **settings: object) -> None:
        self.settings = Settings(**settings)  # type: ignore[arg-type]
        self.profile = profile
        self.pilot = Pilot(self.profile, self.settings, kinematics)
        self.period_ns = round(SECOND_NS / self.settings.rate_hz)
        self.time_ns = 0
        self.ros_offset_ns = ROS_START_NS
        self.sequence = 0
        self.arrivals: list[tuple[int, ReceivedChunk]] = []
        self.log: list[tuple[int, Decision]] = []

    def state(self) -> RobotState | None:
        return None

    @property
    def now(self) -> Now:
        return Now(TICK_START_NS + self.time_ns, self.ros_offset_ns + self.time_ns)

    def resume(self) -> Bench:
        self.pilot.resume(self.now)
        return self

    def chunk(self, *steps: Sequence[float], observed_s: float = 0.0, step_s: float = 0.2, session: int = 7, generation: int = 1,
              sequence: int | None = None, frame_id: str = "arm/base_link", fault: str = "") -> ReceivedChunk:
        self.sequence += 1
        return ReceivedChunk(
            ActionChunk(tuple(Action.from_vector([*step, *[0.0] * (6 - len(step)), 1.0][:7]) for step in steps), step_s,
                        ROS_START_NS + round(observed_s * SECOND_NS), fault=fault),
            ChunkIdentity(session, generation, self.sequence if sequence is None else sequence), frame_id)

    def at(self, time_s: float, received: ReceivedChunk) -> None:
        self.arrivals.append((round(time_s * SECOND_NS), received))

    def tick(self, obstacles: Mapping[str, str] | None = None) -> Decision:
        due = [received for arrival_ns, received in self.arrivals if arrival_ns <= self.time_ns]
        self.arrivals = [entry for entry in self.arrivals if entry[0] > self.time_ns]
        decision = self.pilot.step(self.now, self.state(), Inputs(due, obstacles or {}))
        self.log.append((self.time_ns, decision))
        return decision

    def run(self, until_s: float, jitter: Callable[[], int] = lambda: 0) -> Bench:
        """Tick up to, and not at, a time; leaves the clock at the first tick that was not made. jitter: ns per tick."""
        first_ns, count = self.time_ns, 0
        while self.time_ns < until_s * SECOND_NS:
            self.tick()
            count += 1
            self.time_ns = first_ns + count * self.period_ns + jitter()
        return self

    def speeds(self) -> np.ndarray:
        """[ticks] m/s; silence is rest."""
        return np.array([np.linalg.norm(d.twist.linear_m_s) if d.twist else 0.0 for _, d in self.log])

    def times_s(self) -> np.ndarray:
        return np.array([time_ns for time_ns, _ in self.log]) / SECOND_NS

    def path(self) -> np.ndarray:
        """[ticks + 1, 6]: where the arm is at each tick and now, in metres and summed rpy, from rest at zero."""
        edges_ns = [time_ns for time_ns, _ in self.log] + [self.time_ns]
        moves = [np.concatenate([d.twist.linear_m_s, d.twist.angular_rad_s]) * ((after - before) / SECOND_NS)
                 if d.twist else np.zeros(6) for (before, d), after in zip(self.log, edges_ns[1:], strict=True)]
        return np.vstack([np.zeros(6), np.cumsum(moves, axis=0)])

    def velocities(self) -> np.ndarray:
        """[ticks, 6] m/s and rad/s."""
        return np.array([np.concatenate([d.twist.linear_m_s, d.twist.angular_rad_s]) if d.twist else np.zeros(6) for _, d in self.log])

    def starts(self) -> list[float]:
        return [time_ns / SECOND_NS for time_ns, d in self.log if d.step_started]


class Widow(Bench):
    """The same with joint states: an arm that is, at each tick, where its target was `delay_ticks` before, unless it is `blocked`."""

    def __init__(self, kinematics: Kinematics, position_m: Sequence[float] = (0.3, 0.0, 0.15), profile: RobotProfile = WIDOWX,
                 **settings: object) -> None:
        super().__init__(profile, kinematics, **settings)
        self.kinematics = kinematics
        down = from_rpy(np.array(position_m), np.array([0.0, 1.5707963, 0.0]))
        self.joints: FloatArray = self.reach(down, np.array([0.0, -0.3, 0.5, 0.0, 1.3, 0.0]))
        self.finger_m, self.efforts, self.delay_ticks, self.blocked = 0.035, np.zeros(7), 1, False
        self.stamp_lag_ns = 5_000_000
        self.tick()

    def reach(self, pose: Pose, seed: FloatArray) -> FloatArray:
        solution = self.kinematics.inverse(pose, seed, np.inf)
        assert solution.reached, solution.reason
        return solution.positions

    @property
    def pose(self) -> Pose:
        return self.kinematics.forward(self.joints)

    def state(self) -> RobotState | None:
        """As the driver says it: gripper first, the rest backwards."""
        return RobotState(("left_finger", *reversed(JOINTS)), np.array([self.finger_m, *self.joints[::-1]]), np.zeros(0),
                          self.efforts, self.now.ros_ns - self.stamp_lag_ns)

    def tick(self, obstacles: Mapping[str, str] | None = None) -> Decision:
        decision = super().tick(obstacles)
        moved = self.log[-1 - self.delay_ticks][1] if len(self.log) > self.delay_ticks else None
        if not self.blocked and moved is not None and moved.motion is not None and moved.target is not None:
            self.joints = self.kinematics.inverse(moved.target, self.joints).positions
        if decision.motion is not None and decision.motion.gripper is not None:
            self.finger_m = 0.010 + 0.025 * decision.motion.gripper
        return decision

    def grip(self, linear: Sequence[float] = (0.0, 0.0, 0.0), angular: Sequence[float] = (0.0, 0.0, 0.0), gripper: float | None = None,
             device: str = "joy", deadman: bool = True) -> None:
        """The human moves a device."""
        twist = Twist(np.array(linear, dtype=float), np.array(angular, dtype=float))
        self.pilot.teleop(device, TeleopRequest(twist, gripper, deadman), self.now)

    def drive(self, until_s: float, **request: object) -> None:
        """Tick until a time with a device that repeats itself at every tick."""
        while self.time_ns < until_s * SECOND_NS:
            self.grip(**request)  # type: ignore[arg-type]
            self.run(self.time_ns / SECOND_NS + 1e-6)


@pytest.fixture(scope="session")
def kinematics() -> Kinematics:
    """Of the shipped WidowX."""
    urdf = Path(__file__).parents[2] / "config" / "robots" / "wx250s.urdf"
    return Kinematics(urdf.read_text(encoding="utf-8"), "wx250s/ee_gripper_link", JOINTS, "wx250s/base_link")


@pytest.fixture(scope="session")
def widow_kind() -> type[Widow]:
    """For tests that make many."""
    return Widow


@pytest.fixture
def widow(kinematics: Kinematics) -> Callable[..., Widow]:
    return lambda *arguments, **settings: Widow(kinematics, *arguments, **settings)


@pytest.fixture(scope="session")
def bench() -> Callable[..., Bench]:
    return Bench
