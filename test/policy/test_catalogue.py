"""Settings are checked, profiles are complete, and the scripted policy is a policy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.contract import Observation
from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.policy.catalogue import CHOICES, PolicySettings, load_policy, profile_names, read_profile


@pytest.mark.parametrize("field", sorted(CHOICES))
def test_unknown_choice_names_what_came_and_what_is_taken(field: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PolicySettings("scripted", **{field: "nonsense"})
    assert field in str(caught.value) and "nonsense" in str(caught.value)
    assert all(choice in str(caught.value) for choice in CHOICES[field])


@pytest.mark.parametrize("wrong", [{"step_s": 0.0}, {"step_s": float("nan")}, {"step_s": True}, {"threads": -1}, {"threads": 1.5},
                                   {"rotate_180": "yes"}, {"checkpoint": " "}, {"unnorm_key": None}])
def test_values_out_of_range_or_of_wrong_type_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        PolicySettings(**{"checkpoint": "scripted", **wrong})  # type: ignore[arg-type]


def test_every_profile_in_config_is_valid() -> None:
    assert set(profile_names()) >= {"openvla-7b", "openvla-v01-7b"}
    for name in profile_names():
        settings = read_profile(name, device="cpu")
        assert settings.unnorm_key == "bridge_orig" and settings.resize == "bridge" and settings.device == "cpu"


def test_profile_errors(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigurationError, match="openvla-7b"):
        read_profile("nobody")
    path = tmp_path / "mine.yaml"
    path.write_text("checkpoint: scripted\ncolour: red\n")
    with pytest.raises(ConfigurationError, match="colour"):
        read_profile(str(path))
    path.write_text("- a list\n")
    with pytest.raises(ConfigurationError, match="list"):
        read_profile(str(path))
    path.write_text("a: [unclosed\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_profile(str(path))


@pytest.mark.parametrize("name", ["nothing here", "./no-such-folder", "/no/such/folder"])
def test_unknown_checkpoint_lists_what_is_accepted(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"folder with config\.json.*openvla/openvla-7b.*scripted"):
        load_policy(PolicySettings(name))


def test_scripted_policy_draws_a_closed_circle_of_5_mm_steps() -> None:
    policy = load_policy(PolicySettings("scripted"))
    frame = np.zeros((4, 4, 3), dtype=np.uint8)
    steps = [policy.act(Observation(frame, "go", stamp)).steps[0] for stamp in range(0, 10_000_000_000, 200_000_000)]
    assert len(steps) == 50
    assert np.allclose([np.linalg.norm(step.translation_m) for step in steps], 0.005)
    assert np.allclose(np.sum([step.translation_m for step in steps], axis=0), 0.0, atol=1e-9)
    assert all(check.passed for check in policy.self_test())
    chunk = policy.act(Observation(frame, "go", 7))
    assert chunk.observation_stamp_ns == 7 and chunk.instruction == "go" and chunk.policy_name == "scripted"


def test_catalogue_and_scripted_need_no_torch() -> None:
    code = ("import sys; from openvla_ros.policy.catalogue import PolicySettings, load_policy; "
            "load_policy(PolicySettings('scripted')); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_checkpoint_with_one_data_set_needs_no_key(tmp_path: Path) -> None:
    def key(**overrides: str) -> str:
        return read_profile("openvla-7b", **overrides).unnorm_key

    assert key() == key(checkpoint="openvla/openvla-7b") == key(checkpoint="scripted") == "bridge_orig"
    configuration = tmp_path / "config.json"
    configuration.write_text(json.dumps({"norm_stats": {"mine": {}}}))
    assert key(checkpoint=str(tmp_path)) == "mine"
    assert key(checkpoint=str(tmp_path), unnorm_key="yours") == "yours"
    configuration.write_text(json.dumps({"norm_stats": {"mine": {}, "yours": {}}}))
    assert key(checkpoint=str(tmp_path)) == "bridge_orig"
    configuration.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        key(checkpoint=str(tmp_path))
