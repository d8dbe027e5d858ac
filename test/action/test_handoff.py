"""The table of drivers, row by row: what is not listed here is refused."""

from __future__ import annotations

import itertools

import pytest

from openvla_ros.action.handoff import Driver, next_driver
from openvla_ros.errors import HandoffRefused

ALLOWED = {
    **{(driver, "resume"): "POLICY" for driver in ("HOLD", "POLICY", "HUMAN")},
    **{(driver, "take_over"): "HUMAN" for driver in ("HOLD", "POLICY", "HUMAN")},
    **{(driver, "hold"): "HOLD" for driver in ("HOLD", "POLICY", "HUMAN")},
    **{(driver, "emergency_stop"): "STOPPED" for driver in ("HOLD", "POLICY", "HUMAN", "STOPPED")},
    ("STOPPED", "reset"): "HOLD",
}


@pytest.mark.parametrize(("driver", "event"), [
    *itertools.product(Driver, ["resume", "hold", "emergency_stop", "reset", "take_over", "release"])])
def test_table(driver: Driver, event: str) -> None:
    if (driver.name, event) in ALLOWED:
        assert next_driver(driver, event).name == ALLOWED[driver.name, event]
    else:
        with pytest.raises(HandoffRefused, match="reset_stop" if driver is Driver.STOPPED else f"nothing to {event}"):
            next_driver(driver, event)


def test_numbers_are_those_of_the_messages() -> None:
    assert {driver.name: int(driver) for driver in Driver} == {"HOLD": 0, "POLICY": 1, "HUMAN": 2, "STOPPED": 3}
