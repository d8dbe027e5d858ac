"""`openvla-ros record`: what is refused at once, and how it shows itself. Recording itself is tested in test/ros/test_recorder.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from openvla_ros.bags.scribe import Bag, Progress
from openvla_ros.cli.app import answer
from openvla_ros.cli.record import as_plain, draw, line, report

pytestmark = pytest.mark.ros


@pytest.mark.parametrize(("options", "words"), [
    ((), "exists already, and a recording is never replaced. Choose another --output"),
    (("--when-driver", "policy,robot"), "driver is ROBOT, expected some of hold, policy, human, stopped"),
    (("--compression", "bz2"), "expected one of none, lz4, zstd"),
    (("--split-mb", "0.001"), "expected 0 for never or at least"),
    (("--split-s", "0.5"), "expected 0 for never or 1 to"),
    (("--clock", "sim"), "expected one of auto, system, ros"),
    (("--seconds", "0.01"), "at least 0.1"),
    (("--exclude", "["), "no regular expression"),
])
def test_what_cannot_be_done_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...],
                                           words: str) -> None:
    assert answer(["record", "--output", str(tmp_path), *options, "--json"]) == 2
    assert words in json.loads(capsys.readouterr().out)["error"]


def test_a_place_that_may_not_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert answer(["record", "--output", str(tmp_path / "file/day"), "--json"]) == 2
    assert "cannot be begun: Not a directory. Choose an --output that you may write" in json.loads(capsys.readouterr().out)["error"]


BAG = Bag(Path("day"), 1200, 36_500_000, 12.0, ("day_0.mcap", "day_1.mcap"), {"/image": 360, "/joint_states": 840}, {"/image": 7})


def test_the_display_says_messages_megabytes_rate_and_what_is_missing() -> None:
    from openvla_ros.ros.recorder import Result, View

    view = View("recording", Progress(BAG, (), 9_000_000, 12, {"/image": 7}), {"/image": 380, "/joint_states": 840, "/joy": 0},
                {"/joint_states": 3}, ("nothing on /joy",))
    assert line(view) == "recording: day, 1200 messages, 36.5 MB, 3.04 MB/s, 9 MB queued, 7 dropped"
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(draw(view))
    drawn = console.export_text()
    assert "/image" in drawn and "30.0" in drawn and "70.0" in drawn and "! nothing on /joy" in drawn
    result = Result((BAG,), {"/image": 7}, {"/joint_states": 3}, {"/hand": "lab_msgs/msg/Hand"}, ("/joy",), (), "")
    assert report(result) == [
        "day: 1200 messages of 2 topics in 12.0 s, 36.5 MB in 2 files", "dropped, the disk was too slow: /image 7",
        "lost on the way here: /joint_states 3", "not installed here: /hand (lab_msgs/msg/Hand)", "silent: /joy"]
    plain = json.loads(json.dumps(as_plain(result)))
    assert plain["bags"][0]["path"] == "day" and plain["bags"][0]["counts"] == {"/image": 360, "/joint_states": 840}
    assert "error" not in plain and report(Result((), {}, {}, {}, (), (), "")) == ["nothing was recorded"]
