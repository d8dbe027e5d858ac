"""The pilot that command_node runs, told nonsense for as long as it takes: whatever it sends is finite, slow enough, or a stop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openvla_ros.action.command import Twist
from openvla_ros.action.hand import HOLD_S
from openvla_ros.action.handoff import Driver
from openvla_ros.action.pilot import Inputs, Now, Pilot, Settings
from openvla_ros.action.teleop import TeleopRequest
from openvla_ros.contract import Action, ActionChunk, ChunkIdentity, FloatArray, ReceivedChunk
from openvla_ros.errors import HandoffRefused
from openvla_ros.robot import Limits, OutputProfile, RobotProfile

SECOND_NS, PERIOD_NS, START_NS = 10**9, 10**9 // 30, 1_700_000_000 * 10**9


def tell_nonsense(limits: Limits, rows: FloatArray, seed: int) -> set[Driver]:
    """A tick per row: chunks of it with any stamp, order and session; a hand; orders; clocks that jump. Returns who drove."""
    random = np.random.default_rng(seed)
    profile = RobotProfile(name="arm", real=False, base_frame="base", output="servo_twist", arm=None, grippers={}, limits=limits,
                           outputs={"servo_twist": OutputProfile("commands", "none", {})})
    pilot = Pilot(profile, Settings())
    tick_ns, ros_ns, sequence, last, seen = 0, START_NS, 0, 0.0, set()
    for row in rows:
        tick_ns += round(PERIOD_NS * random.choice([0.0, 0.5, 1.0, 1.0, 1.0, 1.3, 10.0]))
        ros_ns += round(random.choice([PERIOD_NS] * 30 + [-SECOND_NS, 30 * SECOND_NS]))
        now = Now(tick_ns, ros_ns)
        received = []
        if random.random() < 0.5:
            sequence += random.choice([1, 1, 1, 1, 0, -1])
            stamp_ns = max(0, round(random.choice([ros_ns] * 8 + [ros_ns - SECOND_NS, ros_ns + SECOND_NS, 0])))
            identity = ChunkIdentity(int(random.choice([7] * 30 + [8])), 1, max(1, sequence))
            steps = (Action.from_vector(row),) * int(random.choice([0, 1, 1, 1, 2, 300]))
            chunk = ActionChunk(steps, float(random.choice([0.2, 0.2, 0.2, 0.01, 10.0])), stamp_ns)
            received.append(ReceivedChunk(chunk, identity, str(random.choice(["base"] * 20 + ["world"]))))
        order = random.random()
        try:
            if order < 0.1:
                pilot.resume(now)
            elif order < 0.15:
                pilot.take_over()
            elif order < 0.17:
                pilot.emergency_stop("nonsense")
            elif order < 0.2:
                pilot.reset(request_held=False)
        except HandoffRefused:
            pass
        if random.random() < 0.3:
            request = TeleopRequest(Twist(row[:3].copy(), row[3:6].copy()), float(row[6]), bool(random.random() < 0.8))
            pilot.teleop(str(random.choice(list(HOLD_S))), request, now, ros_ns, "base")
        decision = pilot.step(now, None, Inputs(tuple(received)))
        seen.add(decision.driver)
        twist = decision.twist
        speed = 0.0
        if twist is not None:
            speed = float(np.linalg.norm(twist.linear_m_s))
            assert np.isfinite(twist.linear_m_s).all() and np.isfinite(twist.angular_rad_s).all()
            assert speed <= limits.max_speed_m_s * (1 + 2e-9)
            assert np.linalg.norm(twist.angular_rad_s) <= limits.max_speed_rad_s * (1 + 2e-9)
        if decision.driver is Driver.STOPPED:
            assert twist is None or not twist.moving
        if decision.driver is Driver.HOLD:
            assert speed <= last + 1e-12, "HOLD only slows down"
        last = speed
    return seen


@pytest.mark.fuzz
@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), special=st.lists(st.floats(), min_size=1, max_size=5))
def test_a_pilot_that_is_told_nonsense_for_long(limits: Limits, draw_rows: Any, seed: int, special: list[float]) -> None:
    assert tell_nonsense(limits, draw_rows(seed, special, 1000, 7, 0.05), seed) == set(Driver)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), special=st.lists(st.floats(), min_size=1, max_size=5), count=st.integers(1, 60))
def test_a_pilot_that_is_told_nonsense(limits: Limits, draw_rows: Any, seed: int, special: list[float], count: int) -> None:
    tell_nonsense(limits, draw_rows(seed, special, count, 7, 0.05), seed)
