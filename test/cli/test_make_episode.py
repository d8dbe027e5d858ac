"""`openvla-ros make-episode` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openvla_ros.bags.read import Recording
from openvla_ros.cli.app import answer


def test_an_episode_is_made_and_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["make-episode", "--output", str(tmp_path / "e"), "--seconds", "2", "--fps", "10", "--size", "64x48", "--json"]
    assert answer(command) == 0
    assert json.loads(capsys.readouterr().out) == {"recording": str(tmp_path / "e"), "frames": 20, "actions": 19,
                                                   "instruction": "put the red block in the bowl"}
    with Recording(tmp_path / "e") as recording:
        assert recording.topic("/camera/image_raw/compressed").count == 20
    assert answer(command) == 2
    assert "Use --force" in json.loads(capsys.readouterr().out)["error"]
    assert answer([*command, "--force"]) == 0


@pytest.mark.parametrize(("option", "value", "word"), [
    ("--size", "64", "WIDTHxHEIGHT"), ("--size", "8x8", "32 to 4096"), ("--seconds", "0", "0.5 to 600 s"),
    ("--instruction", "a\nb", "cannot be seen"), ("--instruction", " ", "instruction is empty")])
def test_wrong_options_are_refused(tmp_path: Path, option: str, value: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["make-episode", "--output", str(tmp_path / "e"), option, value, "--json"]) == 2
    assert word in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "e").exists()
