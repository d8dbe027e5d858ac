"""A pilot on simulated time, and the arm that holds each twist until the next tick. Nothing here sleeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from openvla_ros.action.pilot import Decision, Now, Pilot, Settings
from openvla_ros.contract import Action, ActionChunk, ChunkIdentity, ReceivedChunk
from openvla_ros.robot import Box, Limits, OutputProfile, RobotProfile

SECOND_NS = 1_000_000_000
ROS_START_NS = 1_700_000_000 * SECOND_NS
TICK_START_NS = 5 * SECOND_NS  # the steady clock counts from another origin

LIMITS = Limits(0.05, 0.25, 0.25, 1.25, 2.5, 12.0, 0.06, 0.3, Box((0.1, 0.45), (-0.2, 0.25), (-0.01, 0.3)))
PROFILE = RobotProfile(name="arm", real=False, base_frame="arm/base_link", output="servo_twist",
                       outputs={"servo_twist": OutputProfile("delta_twist_cmds", "none", {})}, grippers={}, limits=LIMITS, arm=None)


class Bench:
    """Time runs from 0; `at` says when chunks arrive [s], `sent` is what the arm got at which time [ns]."""

    def __init__(self, **settings: object) -> None:
        self.settings = Settings(**settings)  # type: ignore[arg-type]
        self.profile = PROFILE
        self.pilot = Pilot(self.profile, self.settings)
        self.period_ns = round(SECOND_NS / self.settings.rate_hz)
        self.time_ns = 0
        self.ros_offset_ns = ROS_START_NS
        self.sequence = 0
        self.arrivals: list[tuple[int, ReceivedChunk]] = []
        self.log: list[tuple[int, Decision]] = []

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
        decision = self.pilot.step(self.now, due, obstacles or {})
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

    def starts(self) -> list[float]:
        return [time_ns / SECOND_NS for time_ns, d in self.log if d.step_started]


@pytest.fixture(scope="session")
def bench() -> Callable[..., Bench]:
    return Bench
