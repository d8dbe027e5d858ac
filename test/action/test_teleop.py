"""What a joystick asks for, with numbers; and everything that is no joystick, or no map."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from openvla_ros.action.command import ZERO
from openvla_ros.action.handoff import NEXT
from openvla_ros.action.teleop import BUTTONS, Joystick, JoystickMap, Stick, TeleopRequest, Wish
from openvla_ros.errors import ConfigurationError

GOOD: dict[str, Any] = {
    "deadzone": 0.2,
    "buttons": {"deadman": 0, "stop": 1, "open": 2, "close": 3, "take_over": 4, "resume": 5, "hold": 6},
    "axes": {"x": {"axis": 1, "scale": 0.1}, "y": {"axis": 0, "scale": -0.1}, "yaw": {"axis": 3, "scale": 1}},
}
MAP = JoystickMap.from_mapping(GOOD, "pad.yaml")


def held(*names: str) -> list[int]:
    """Buttons of a pad on which these are pressed."""
    return [int(name in names) for name in ("deadman", "stop", "open", "close", "take_over", "resume", "hold")]


def in_hand() -> Joystick:
    """A joystick whose deadman was seen released."""
    joystick = Joystick(MAP)
    assert joystick.read([0.0] * 4, held()) == TeleopRequest()
    return joystick


def test_axes_become_speeds_with_a_deadzone_and_a_sign() -> None:
    request = in_hand().read([0.6, 1.0, 0.9, -1.0], held("deadman"))
    np.testing.assert_allclose(request.twist.linear_m_s, [0.1, -0.05, 0.0])
    np.testing.assert_allclose(request.twist.angular_rad_s, [0.0, 0.0, -1.0])
    assert request.active and request.deadman and request.gripper is None and request.wish is Wish.NONE and not request.fault


@pytest.mark.parametrize(("deflection", "speed"), [
    (0.0, 0.0), (0.2, 0.0), (-0.2, 0.0), (0.2 + 1e-9, 0.0), (0.6, 0.05), (-0.6, -0.05), (1.0, 0.1), (1.5, 0.1), (-1e300, -0.1)])
def test_the_speed_grows_from_zero_at_the_edge_of_the_deadzone(deflection: float, speed: float) -> None:
    twist = in_hand().read([0.0, deflection, 0.0, 0.0], held("deadman")).twist
    assert twist.linear_m_s[0] == pytest.approx(speed, abs=1e-9)


def test_without_the_deadman_nothing_moves() -> None:
    joystick = in_hand()
    assert joystick.read([1.0] * 4, held("open")) == TeleopRequest()
    assert joystick.read([1.0] * 4, held("deadman")).active
    released = joystick.read([1.0] * 4, held())
    assert released.twist is ZERO and not released.deadman and not released.active


def test_a_hand_that_rests_is_not_active() -> None:
    request = in_hand().read([0.1] * 4, held("deadman"))
    assert request.deadman and not request.active


def test_a_deadman_that_was_never_seen_released_does_not_count() -> None:
    joystick = Joystick(MAP)
    assert joystick.read([1.0] * 4, held("deadman")) == TeleopRequest()
    assert joystick.read([1.0] * 4, held("deadman")) == TeleopRequest()
    joystick.read([1.0] * 4, held())
    assert joystick.read([1.0] * 4, held("deadman")).active


@pytest.mark.parametrize(("buttons", "opening"), [
    (("deadman", "open"), 1.0), (("deadman", "close"), 0.0), (("deadman", "open", "close"), None), (("deadman",), None), (("open",), None)])
def test_the_gripper_is_asked_while_its_button_is_held_with_the_deadman(buttons: tuple[str, ...], opening: float | None) -> None:
    joystick = in_hand()
    for _ in range(3):
        request = joystick.read([0.0] * 4, held(*buttons))
        assert request.gripper == opening and request.active == (opening is not None)


@pytest.mark.parametrize(("name", "wish"), [("take_over", Wish.TAKE_OVER), ("resume", Wish.RESUME), ("hold", Wish.HOLD)])
def test_a_wish_is_made_once_per_press(name: str, wish: Wish) -> None:
    joystick = in_hand()
    pressed = [joystick.read([0.0] * 4, buttons).wish for buttons in (held(name), held(name), held(), held(name, "deadman"))]
    assert pressed == [wish, Wish.NONE, Wish.NONE, wish]
    assert any(event == wish.value for _, event in NEXT), "the handoff table knows it"
    fresh = Joystick(MAP)
    assert fresh.read([0.0] * 4, held(name)).wish is Wish.NONE, "pressed before we came"


def test_of_several_wishes_the_most_cautious_counts() -> None:
    assert in_hand().read([0.0] * 4, held("take_over", "resume", "hold")).wish is Wish.HOLD
    assert in_hand().read([0.0] * 4, held("take_over", "resume")).wish is Wish.TAKE_OVER


def test_stop_counts_in_every_message_and_moves_nothing() -> None:
    joystick = Joystick(MAP)
    for _ in range(2):
        assert joystick.read([1.0] * 4, held("stop", "deadman", "open", "resume")) == TeleopRequest(wish=Wish.STOP)


@pytest.mark.parametrize(("axes", "buttons", "words"), [
    ([0.0] * 3, held("deadman"), "has 3 axes and 7 buttons, the map reads axis 3 and button 6"),
    ([0.0] * 4, held("deadman")[:6], "has 4 axes and 6 buttons"), ([], [], "has 0 axes and 0 buttons"),
    ([0.0, math.nan, 0.0, 0.0], held("deadman"), r"axes \[1\] are NaN"), ([math.inf, 0, 0, -math.inf], held("deadman"), r"\[0, 3\]"),
])
def test_what_does_not_fit_moves_nothing_and_says_why(axes: list[float], buttons: list[int], words: str) -> None:
    joystick = in_hand()
    request = joystick.read(axes, buttons)
    assert re.search(words, request.fault), request.fault
    assert not request.active and not request.deadman and request.twist is ZERO and request.wish is Wish.NONE
    assert not joystick.read([1.0] * 4, held("deadman")).deadman, "after a fault the deadman must be seen released again"


def test_stop_is_heard_even_from_a_device_that_does_not_fit() -> None:
    assert in_hand().read([math.nan], held("stop")[:2]).wish is Wish.STOP


def test_an_axis_that_the_map_does_not_read_may_be_anything() -> None:
    request = in_hand().read([0.0, 1.0, math.nan, 0.0], held("deadman"))
    assert not request.fault and request.twist.linear_m_s[0] == pytest.approx(0.1)


@given(axes=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6),
       buttons=st.lists(st.integers(-2**31, 2**31 - 1), max_size=9))
def test_whatever_comes_speeds_stay_within_the_scales(axes: list[float], buttons: list[int]) -> None:
    joystick = in_hand()
    for _ in range(2):
        request = joystick.read(axes, buttons)
        assert (np.abs(request.twist.linear_m_s) <= [0.1, 0.1, 0.0]).all()
        assert (np.abs(request.twist.angular_rad_s) <= [0.0, 0.0, 1.0]).all()
        assert request.gripper in (None, 0.0, 1.0) and (request.deadman or not request.twist.moving)


def test_a_nan_that_somebody_else_sends_counts_as_touching() -> None:
    twist = type(ZERO)(np.array([math.nan, 0.0, 0.0]), np.zeros(3))
    assert TeleopRequest(twist, deadman=True).active


@pytest.mark.parametrize(("name", "axes", "buttons"), [("xbox", 8, 11), ("game_controller", 6, 21)])
def test_the_shipped_maps_fit_their_pads(checkout: Path, name: str, axes: int, buttons: int) -> None:
    path = checkout / "config" / "joy" / f"{name}.yaml"
    chart = JoystickMap.from_mapping(yaml.safe_load(path.read_text()), str(path))
    assert all(getattr(chart, button) is not None for button in BUTTONS)
    joystick = Joystick(chart)
    at_rest = joystick.read([0.0] * axes, [0] * buttons)
    assert at_rest == TeleopRequest()
    held_down = [int(number == chart.deadman) for number in range(buttons)]
    forward = joystick.read([0.0, 1.0] + [0.0] * (axes - 2), held_down).twist  # left stick up
    assert forward.linear_m_s.tolist() == pytest.approx([0.1, 0.0, 0.0]) and not forward.angular_rad_s.any()


def test_every_map_that_is_shipped_is_tested(checkout: Path) -> None:
    assert {path.stem for path in (checkout / "config" / "joy").glob("*.yaml")} == {"xbox", "game_controller"}


def changed(*path: str, value: Any = None) -> dict[str, Any]:
    """GOOD with one value set, or one key removed when the value is Ellipsis."""
    mapping = copy.deepcopy(GOOD)
    inner = mapping
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return mapping


@pytest.mark.parametrize(("mapping", "words"), [
    (None, "joystick map is NoneType, expected a mapping"), ([], "is list"),
    (changed("axis", value=1), r"unknown keys \['axis'\]"), (changed("deadzone", value=...), r"lacks \['deadzone'\]"),
    (changed("buttons", "deadman", value=...), r"buttons has unknown keys \[\] and lacks \['deadman'\]"),
    (changed("buttons", "stop", value=None), "no button 'stop'"),
    (changed("buttons", "fire", value=9), r"unknown keys \['fire'\]"),
    (changed("buttons", "stop", value=0), "button 0 is both 'deadman' and 'stop'"),
    (changed("buttons", "stop", value=True), "button of 'stop' is True"), (changed("buttons", "open", value=-1), "'open' is -1"),
    (changed("buttons", "open", value=64), "from 0 to 63"), (changed("buttons", "open", value=1.0), "'open' is 1.0"),
    (changed("axes", value={}), "expected one or more of x, y, z"), (changed("axes", "up", value={}), r"unknown keys \['up'\]"),
    (changed("axes", "x", value=1), "axis 'x' is int"), (changed("axes", "x", "scale", value=...), r"lacks \['scale'\]"),
    (changed("axes", "x", "axis", value=0), "axis 0 is both 'x' and 'y'"), (changed("axes", "x", "axis", value="1"), "'x' is '1'"),
    (changed("axes", "x", "scale", value=0.6), "'x' is 0.6, expected 0.001 to 0.5 m/s"),
    (changed("axes", "x", "scale", value=0), "'x' is 0"),
    (changed("axes", "yaw", "scale", value=-3.0), "expected 0.01 to 2.5 rad/s"),
    (changed("axes", "x", "scale", value=math.nan), "'x' is nan"), (changed("axes", "x", "scale", value=False), "'x' is False"),
    (changed("deadzone", value=math.nan), "deadzone is nan"), (changed("deadzone", value=0.6), "0 to 0.5"),
    (changed("deadzone", value="0.1"), "deadzone is '0.1'"),
])
def test_a_wrong_map_is_refused_with_its_file(mapping: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"pad.yaml: .*{words}"):
        JoystickMap.from_mapping(mapping, "pad.yaml")


def test_a_map_made_in_code_is_checked_too() -> None:
    with pytest.raises(ConfigurationError, match="directions"):
        JoystickMap(deadman=0, stop=1, sticks={"up": Stick(0, 0.1)})
