"""Settings are checked, profiles are complete, and the scripted policy is a policy."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.contract import Observation
from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.policy import catalogue
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
    assert set(profile_names()) >= {"default", "openvla-7b", "openvla-v01-7b"}
    expected = {"default": ("default", "widowx_sim", "direct")}
    for name in profile_names():
        settings = read_profile(name, device="cpu")
        assert settings.device == "cpu"
        said = settings.checkpoint, settings.unnorm_key, settings.resize
        assert said == expected.get(name, (f"openvla/{name}", "bridge_orig", "bridge"))


def test_the_default_checkpoint_brings_its_profile_along(tmp_path: Path) -> None:
    own = read_profile("default")
    assert read_profile("openvla-7b", checkpoint="default") == own
    assert read_profile("openvla-7b", checkpoint="default", dtype="bfloat16") == replace(own, dtype="bfloat16")
    path = tmp_path / "mine.yaml"
    path.write_text("checkpoint: openvla/openvla-7b\nresize: bridge\n")
    assert read_profile(str(path), checkpoint="default").resize == "bridge", "a file of one's own says what it says"


def test_an_incomplete_default_checkpoint_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "DEFAULT_FOLDER", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors, preprocessor_config\.json, tokenizer\.json.*train-default"):
        load_policy(PolicySettings("default"))


def test_a_folder_called_default_does_not_stand_in_for_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "DEFAULT_FOLDER", tmp_path / "shipped")
    with pytest.raises(CheckpointError, match="shipped lacks"):
        load_policy(PolicySettings("default"))
    with pytest.raises(CheckpointError, match=r"default has no config\.json"):
        load_policy(PolicySettings("./default"))


@pytest.mark.skipif(not (catalogue.DEFAULT_FOLDER / "model.safetensors").is_file(), reason="the default checkpoint is not trained yet")
def test_the_default_checkpoint_is_ready_to_drive() -> None:
    policy = load_policy(read_profile("default", device="cpu"), progress=False)
    assert policy.name == "default" and policy.step_s == 0.2 and policy.notes == ()
    assert [check.name for check in policy.self_test() if not check.passed] == []
    assert sum(path.stat().st_size for path in catalogue.DEFAULT_FOLDER.iterdir()) < 12e6
    card = (catalogue.DEFAULT_FOLDER / "README.md").read_text()
    assert "7B" in card and "seed" in card.lower()
    still = np.full((128, 128, 3), 127, dtype=np.uint8)
    for instruction in ("pick up the red block", "bring me a coffee", "\u4e2d \u2603", "z" * 256):
        chunk = policy.act(Observation(still, instruction, 0))
        assert (len(chunk.steps) == 1) != bool(chunk.fault)


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
    with pytest.raises(CheckpointError, match=r"default.*folder with config\.json.*openvla/openvla-7b.*scripted"):
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
