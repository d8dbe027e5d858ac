"""The human's hand: what the devices asked for last, and for how long that holds. Nobody repeats itself for ever.

Comes in: a TeleopRequest per message and the time it came; goes out: the request that holds now. Pure; what it does to the arm,
and whether it may, is the pilot's business.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from openvla_ros.action.command import NOBODY, PlayedStep, Twist, to_action
from openvla_ros.action.teleop import TeleopRequest
from openvla_ros.contract import STEP_S

SECOND_NS = 1_000_000_000

HOLD_S = {"joy": 0.25, "twist": 0.2, "gripper": 0.75}
"""How long one message of each device holds, and in which order they count. A joystick's deadman must be heard again within 0.25 s.
An opening holds longer: at its rate limit the gripper travels its whole way in 0.5 s."""

OPEN_HAND = TeleopRequest()


class Held(NamedTuple):
    """A request and the end of its time on the clock of the ticks."""

    request: TeleopRequest
    until_ns: int


class Hand:
    """One for all devices. A device whose deadman is released, or that was not understood, asks for nothing."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}

    def put(self, device: str, request: TeleopRequest, tick_ns: int) -> None:
        """The newest message of a device of HOLD_S."""
        self._held[device] = Held(request, tick_ns + round(HOLD_S[device] * SECOND_NS))

    def empty(self) -> None:
        """Forget everything, as when time jumped back."""
        self._held.clear()

    def request(self, tick_ns: int) -> TeleopRequest:
        """What holds now: the motion of the first device whose deadman is held, and the first opening that is asked for."""
        holding = [held.request for device in HOLD_S if (held := self._held.get(device)) and tick_ns < held.until_ns
                   and held.request.deadman and not held.request.fault]
        if not holding:
            return OPEN_HAND
        movers = [request for request in holding if request.twist.moving] or holding
        gripper = next((request.gripper for request in holding if request.gripper is not None), None)
        return TeleopRequest(movers[0].twist, gripper, deadman=True)

    def silent(self, tick_ns: int) -> bool:
        """A device that asked for motion went silent, instead of saying that it ends."""
        newest = max(self._held.values(), key=lambda held: held.until_ns, default=None)
        return newest is not None and tick_ns >= newest.until_ns and newest.request.deadman and newest.request.twist.moving


class Tick(NamedTuple):
    """What a human asked for in one tick, and what was sent."""

    asked: Twist
    sent: Twist
    gripper: float | None


class HumanRecord:
    """A human's motion as steps of STEP_S, so that it can be compared with what the policy proposed. Rest is not recorded."""

    def __init__(self) -> None:
        self._ticks: list[Tick] = []

    def tick(self, asked: Twist, sent: Twist, gripper: float | None, opening: float | None, period_s: float,
             rules: tuple[str, ...]) -> PlayedStep | None:
        """One tick of motion. The step that it ends, or None. opening: where the gripper was sent; rules: those that act now."""
        if self._ticks or asked.moving or sent.moving or gripper is not None:
            self._ticks.append(Tick(asked, sent, gripper))
        if (len(self._ticks) + 0.5) * period_s < STEP_S:
            return None
        ticks, self._ticks = self._ticks, []
        duration_s, kept = len(ticks) * period_s, opening or 0.0
        wishes = [tick.gripper for tick in ticks if tick.gripper is not None]
        return PlayedStep(NOBODY, 0, to_action(_mean([tick.asked for tick in ticks]), duration_s, wishes[-1] if wishes else kept),
                          to_action(_mean([tick.sent for tick in ticks]), duration_s, kept), rules)


def _mean(twists: list[Twist]) -> Twist:
    return Twist(np.mean([twist.linear_m_s for twist in twists], axis=0), np.mean([twist.angular_rad_s for twist in twists], axis=0))


def is_finite(request: TeleopRequest) -> bool:
    """No NaN and no infinity in it."""
    numbers = [*request.twist.linear_m_s, *request.twist.angular_rad_s, 0.0 if request.gripper is None else request.gripper]
    return bool(np.isfinite(numbers).all())
