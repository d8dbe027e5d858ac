"""`openvla-ros play`: what is refused before anything is published. Playing itself is tested over DDS in test/ros/test_player.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openvla_ros.cli.app import answer
from openvla_ros.cli.play import split_remap
from openvla_ros.errors import ConfigurationError

pytestmark = pytest.mark.ros


def test_a_missing_recording_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["play", str(tmp_path / "none"), "--json"]) == 2
    assert "there is no recording at" in json.loads(capsys.readouterr().out)["error"]


def test_remaps_are_split() -> None:
    assert split_remap("/a/b:=/c") == ("/a/b", "/c")


@pytest.mark.parametrize("text", ["", "/a", ":=/b", "/a:=", "/a=/b"])
def test_other_remaps_are_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="expected recorded:=heard"):
        split_remap(text)
    assert answer(["play", str(tmp_path), "--remap", text, "--json"]) == 2
    assert "expected recorded:=heard" in json.loads(capsys.readouterr().out)["error"]
