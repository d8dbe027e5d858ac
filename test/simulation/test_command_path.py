"""The loop in process against the real command side: the same actions through pilot, trajectory planner and a controller's rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from openvla_ros.contract import STEP_S, Action, ActionChunk, ChunkIdentity, FloatArray, ReceivedChunk, RobotState
from openvla_ros.robot import RobotProfile, from_mapping

pytest.importorskip("pinocchio", reason="needs pinocchio (pip install pin)")

from openvla_ros.action.kinematics import Kinematics
from openvla_ros.action.pilot import Inputs, Now, Pilot, Settings
from openvla_ros.action.trajectory import TrajectoryPlanner
from openvla_ros.ros.trajectory_follower import JointRange, TrajectoryFollower, Waypoint
from openvla_ros.simulation import expert
from openvla_ros.simulation.loop import Loop
from openvla_ros.simulation.tabletop import ARM_JOINTS, TIMESTEP_S, TOOL_LINK, Tabletop
from openvla_ros.simulation.task import KINDS, Judge, SceneState, Task

STEP_NS, CYCLE_NS, TICK_NS = round(STEP_S * 1e9), round(TIMESTEP_S * 1e9), 33_333_333
FINGER_MOVE_S = 0.1  # ros/outputs/gripper.py


class CommandSide:
    """One arm behind the parts that command_node and simulation_node are made of, on a clock that is turned by hand."""

    def __init__(self, profile: RobotProfile, kinematics: Kinematics, seed: int) -> None:
        self.tabletop = Tabletop(seed)
        self._base_frame, self._now_ns, self._tick_ns, self._sequence = profile.base_frame, 10**9, 10**9, 0
        self._pilot, self._planner = Pilot(profile, Settings(), kinematics), TrajectoryPlanner(profile.limits.longest_ramp_s)
        low, high = self.tabletop.finger_range_m
        self._finger_m = [low, high]
        ranges = self.tabletop.arm_ranges_rad
        self._arm = TrajectoryFollower(ARM_JOINTS, self.tabletop.arm_positions_rad, JointRange(*ranges.T, np.full(6, 3.14)))
        self._finger = TrajectoryFollower(["left_finger"], np.array([high]), JointRange(np.array([low]), np.array([high]), np.ones(1)))
        self._waiting: list[ReceivedChunk] = []
        self._started_ns: int | None = None
        self._cycle()
        self._pilot.resume(Now(self._now_ns, self._now_ns))
        self._cycle()

    def step(self, action: Action, look_before_end_s: float) -> tuple[SceneState, SceneState]:
        """Play one action. What a policy sees before its end, and what is there 10 ms before: then the next chunk is to come."""
        self._sequence += 1
        chunk = ActionChunk((action,), STEP_S, self._now_ns)
        self._waiting = [ReceivedChunk(chunk, ChunkIdentity(1, 1, self._sequence), self._base_frame)]
        self._started_ns = None
        for _ in range(20):
            self._cycle()
            if self._started_ns is not None:
                break
        assert self._started_ns is not None, self._pilot.stop_reason
        self._run_until(self._started_ns + STEP_NS - round(look_before_end_s * 1e9))
        seen = self.tabletop.state()
        self._run_until(self._started_ns + STEP_NS - 10_000_000)
        return seen, self.tabletop.state()

    def _run_until(self, end_ns: int) -> None:
        while self._now_ns < end_ns:
            self._cycle()

    def _cycle(self) -> None:
        now_s = self._now_ns / 1e9
        if self._now_ns >= self._tick_ns:
            self._tick_ns += TICK_NS
            self._tick(now_s)
        self.tabletop.set_arm_target(self._arm.advance(now_s))
        self.tabletop.set_finger_target(float(self._finger.advance(now_s)[0]))
        self.tabletop.advance(TIMESTEP_S)
        self._now_ns += CYCLE_NS

    def _tick(self, now_s: float) -> None:
        joints, received, self._waiting = self.tabletop.joints(), self._waiting, []
        state = RobotState(joints.names, joints.positions, joints.velocities, np.zeros(0), self._now_ns)
        decision = self._pilot.step(Now(self._now_ns, self._now_ns), state, Inputs(received=received))
        if decision.step_started:
            self._started_ns = self._now_ns
        if decision.motion is None or decision.motion.joints is None:
            return
        points = self._planner.plan(now_s, decision.motion.ahead or ((0.0, decision.motion.joints),))
        if points:
            self._arm.take(ARM_JOINTS, [Waypoint(point.time_s, point.positions, point.velocities) for point in points], None, now_s)
        if decision.motion.gripper is not None:
            wanted = np.interp(decision.motion.gripper, [0.0, 1.0], self._finger_m)
            self._finger.take(["left_finger"], [Waypoint(FINGER_MOVE_S, np.array([wanted]), None)], None, now_s)


@pytest.fixture(scope="module")
def profile(checkout: Path) -> RobotProfile:
    return from_mapping(yaml.safe_load((checkout / "config" / "robots" / "wx250s_sim.yaml").read_text(encoding="utf-8")), "wx250s_sim.yaml")


@pytest.fixture(scope="module")
def kinematics(checkout: Path) -> Kinematics:
    return Kinematics((checkout / "config" / "robots" / "wx250s.urdf").read_text(encoding="utf-8"), TOOL_LINK, ARM_JOINTS)


def test_the_same_actions_lead_the_same_way(profile: RobotProfile, kinematics: Kinematics) -> None:
    random = np.random.default_rng(0)
    for seed in range(2):
        loop, side = Loop(profile.limits), CommandSide(profile, kinematics, seed)
        loop.begin(seed)
        ways: tuple[list[FloatArray], list[FloatArray]] = ([], [])
        for _ in range(12):
            action = Action(random.uniform((-0.03, -0.03, -0.015), (0.03, 0.03, 0.015)), np.zeros(3), 1.0)
            ways[0].append(loop.step_unseen(action, 0.02).tool_m)
            ways[1].append(side.step(action, 0.02)[0].tool_m)
        apart_m = np.linalg.norm(np.subtract(*ways), axis=1)
        assert apart_m.max() < 0.008, apart_m  # 40 ms of the fastest step; a step that is lost or late would be 30 mm


@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_gets_there_through_the_real_command_side_too(kind: str, profile: RobotProfile, kinematics: Kinematics) -> None:
    for seed, latency_s in ((0, 0.04), (1, 0.10), (2, 0.14)):
        side = CommandSide(profile, kinematics, seed)
        judge, seen = Judge(Task(kind, side.tabletop.layout.colours[seed % 3])), side.tabletop.state()
        while not judge.finished:
            seen, state = side.step(expert.act(seen, judge.task), latency_s)
            judge.update(state)
        assert judge.success and not judge.wrong, seed
