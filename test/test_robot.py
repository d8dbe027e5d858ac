"""Robot profiles: those that are shipped, and everything that is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from openvla_ros.errors import ConfigurationError
from openvla_ros.robot import LIMIT_RANGES, Limits, from_mapping
from openvla_ros.ros.profile import read_robot

GOOD: dict[str, Any] = {
    "name": "arm", "real": True, "output": "servo_twist", "command_topic": "delta_twist_cmds",
    "limits": {"max_step_m": 0.05, "max_step_rad": 0.25, "max_speed_m_s": 0.25, "max_speed_rad_s": 1.25, "stop_m_s2": 2.5,
               "stop_rad_s2": 12},
}


def test_a_good_mapping() -> None:
    profile = from_mapping(GOOD, "arm.yaml")
    assert profile.base_frame == "arm/base_link" and profile.limits == Limits(0.05, 0.25, 0.25, 1.25, 2.5, 12.0)
    assert profile.limits.shortest_step_s == pytest.approx(0.2)
    assert profile.limits.longest_ramp_s == pytest.approx(1.25 / 12)


@pytest.mark.parametrize(("change", "words"), [
    ({"nmae": "x"}, r"arm.yaml: profile has unknown keys \['nmae'\]"),
    ({"name": None}, "name"), ({"name": "two words"}, "two words"), ({"real": "yes"}, "true or false"),
    ({"output": "joint"}, "one of servo_twist"), ({"base_frame": ""}, "base_frame"), ({"command_topic": 3}, "command_topic"),
    ({"limits": None}, "limits is NoneType, expected a mapping"), ({"limits": {}}, r"lacks \['max_step_m'"),
])
def test_a_wrong_profile_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        from_mapping({**GOOD, **change}, "arm.yaml")


@pytest.mark.parametrize("key", ["name", "real", "output", "command_topic", "limits"])
def test_a_missing_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"lacks \\['{key}'\\]"):
        from_mapping({name: value for name, value in GOOD.items() if name != key}, "arm.yaml")


@pytest.mark.parametrize("name", LIMIT_RANGES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, -1, 1e9, "0.05", None, True, "unlimited"])
def test_no_limit_can_be_lifted(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"limit '{name}' is .*expected a number from"):
        from_mapping({**GOOD, "limits": {**GOOD["limits"], name: value}}, "arm.yaml")


@pytest.mark.parametrize("mapping", [None, [], "wx250s", 3])
def test_something_else_than_a_mapping_is_refused(mapping: object) -> None:
    with pytest.raises(ConfigurationError, match="expected a mapping"):
        from_mapping(mapping, "arm.yaml")


def test_shipped_profiles() -> None:
    real, replay = read_robot("wx250s"), read_robot("wx250s_replay")
    assert real.real and real.base_frame == "wx250s/base_link" and real.limits == Limits(0.05, 0.25, 0.25, 1.25, 2.5, 12.0)
    assert replay == replace(real, name="wx250s_replay", real=False)


def test_profiles_by_path_and_by_wrong_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert read_robot(str(path)).name == "arm"
    with pytest.raises(ConfigurationError, match="no robot profile 'ur5e'; there are wx250s, wx250s_replay"):
        read_robot("ur5e")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_robot(str(tmp_path / "absent.yaml"))
    path.write_text("name: [")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_robot(str(path))
