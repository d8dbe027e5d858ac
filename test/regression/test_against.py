"""Two policies over the same recordings: what changed is named, agreement and errors are those of a slow count."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.cli.app import answer
from openvla_ros.contract import ACTION_NAMES
from openvla_ros.errors import ConfigurationError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.regression.against import other_settings
from openvla_ros.regression.job import Job, Result


def test_the_other_policy_is_the_same_but_for_what_is_named(tiny: PolicySettings) -> None:
    base = PolicySettings("somewhere", "bridge_orig", dtype="bfloat16")
    assert other_settings(base, "dtype=float32, threads=2,rotate_180=true") == PolicySettings(
        "somewhere", "bridge_orig", dtype="float32", threads=2, rotate_180=True)
    assert other_settings(base, "openvla/another") == PolicySettings("openvla/another", "bridge_orig", dtype="bfloat16")
    assert other_settings(base, tiny.checkpoint).unnorm_key == "untrained"


@pytest.mark.parametrize(("text", "word"), [
    ("colour=red", "names the setting 'colour'"), ("threads=many", "expected a value of type int"), ("rotate_180=perhaps", "type bool"),
    ("dtype=int3", "int3"), ("dtype=float32", "changes nothing")])
def test_what_cannot_be_set_is_refused(text: str, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        other_settings(PolicySettings("somewhere", dtype="float32"), text)


def test_two_modes_over_two_recordings(episode: Path, tiny: PolicySettings, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                       job: Callable[..., Job], run: Callable[[Job], Result]) -> None:
    other = tmp_path / "second"
    other.symlink_to(episode)
    command = ["replay", str(episode), str(other), "--checkpoint", tiny.checkpoint, "--device", "cpu", "--threads", "1",
               "--dtype", "float32", "--resize", "direct"]
    assert answer([*command, "--against", "rotate_180=true", "--output", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [bag["frames"] for bag in said["bags"]] == [6, 6] and said["together"]["frames"] == 12
    assert said["bags"][0]["base"] == "tiny" and said["bags"][0]["other"] == "tiny, rotate_180=True"

    # The slow way: both policies on their own.
    alone = [run(job(policy=policy)).replay for policy in (tiny, replace(tiny, rotate_180=True))]
    pairs = list(zip(*(replay.frames for replay in alone if replay is not None), strict=True))
    for column, name in enumerate(ACTION_NAMES):
        same = np.mean([one.token_ids[column] == two.token_ids[column] for one, two in pairs])
        apart = [two.action[column] - one.action[column] for one, two in pairs]
        assert said["bags"][0]["agreement"][name] == pytest.approx(same)
        error = said["together"]["errors"][column]
        assert error["name"] == name and error["pairs"] == 12
        assert error["mean_abs"] == pytest.approx(np.abs(apart).mean()) and error["bias"] == pytest.approx(np.mean(apart))
    worst = said["bags"][0]["worst"]
    assert [frame["score"] for frame in worst] == sorted((frame["score"] for frame in worst), reverse=True) and worst[0]["score"] > 0
    folder = tmp_path / "out" / episode.name
    assert sorted(path.name for path in folder.glob("worst_*.png")) == sorted(f"worst_{frame['frame']:06d}.png" for frame in worst)


def test_a_recording_that_cannot_be_compared_is_listed(episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.mcap"
    broken.write_bytes(b"nothing")
    command = ["replay", str(broken), str(episode), "--checkpoint", "scripted", "--output", str(tmp_path / "out"), "--json"]
    assert answer([*command, "--against", "step_s=0.5"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["bags"][0]["error"].count("broken.mcap") == 1 and said["bags"][1]["frames"] == said["together"]["frames"] == 6


def test_a_policy_that_cannot_be_loaded_is_named(episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["replay", str(episode), "--checkpoint", "scripted", "--against", "nowhere at all", "--output", str(tmp_path / "out")]
    assert answer([*command, "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["together"] is None and "nowhere at all" in said["bags"][0]["error"]


def test_words_for_people(episode: Path, tiny: PolicySettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["replay", str(episode), "--checkpoint", tiny.checkpoint, "--against", "prompt_style=v01", "--dtype", "float32",
                   "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "same id" in shown and "all ids equal in" in shown and "furthest apart in frames" in shown
