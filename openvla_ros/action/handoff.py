"""Who drives the arm, as a table. Whatever is not in it is refused with a reason."""

from __future__ import annotations

from enum import IntEnum

from openvla_ros.errors import HandoffRefused


class Driver(IntEnum):
    """Numbers as in openvla_msgs/CommandReport; names as on the topic `driver`."""

    HOLD = 0  # nothing moves the arm
    POLICY = 1  # chunks of the policy move the arm
    HUMAN = 2  # a teleop moves the arm
    STOPPED = 3  # latched emergency stop


NEXT = {
    (Driver.HOLD, "resume"): Driver.POLICY,
    (Driver.POLICY, "resume"): Driver.POLICY,
    (Driver.HUMAN, "resume"): Driver.POLICY,
    (Driver.HOLD, "take_over"): Driver.HUMAN,
    (Driver.POLICY, "take_over"): Driver.HUMAN,
    (Driver.HUMAN, "take_over"): Driver.HUMAN,
    (Driver.HOLD, "hold"): Driver.HOLD,
    (Driver.POLICY, "hold"): Driver.HOLD,
    (Driver.HUMAN, "hold"): Driver.HOLD,
    (Driver.HOLD, "emergency_stop"): Driver.STOPPED,
    (Driver.POLICY, "emergency_stop"): Driver.STOPPED,
    (Driver.HUMAN, "emergency_stop"): Driver.STOPPED,
    (Driver.STOPPED, "emergency_stop"): Driver.STOPPED,
    (Driver.STOPPED, "reset"): Driver.HOLD,
}


def next_driver(driver: Driver, event: str) -> Driver:
    """Who drives after the event. Raises HandoffRefused when the table has no such row."""
    if (driver, event) in NEXT:
        return NEXT[driver, event]
    if driver is Driver.STOPPED:
        raise HandoffRefused("the arm is STOPPED. Find out why, then call reset_stop; it leads to HOLD and moves nothing.")
    raise HandoffRefused(f"the driver is {driver.name}: nothing to {event}.")
