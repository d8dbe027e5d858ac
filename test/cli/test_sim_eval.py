"""`openvla-ros sim-eval`: counts that can be believed, controls that fail as they should, and refusals before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openvla_ros.cli import app
from openvla_ros.policy.catalogue import DEFAULT_FOLDER
from openvla_ros.policy.openvla.untrained import write_untrained

pytest.importorskip("mujoco", reason="the simulation needs MuJoCo: pip install 'openvla-ros[simulation]'")

shipped = pytest.mark.skipif(not (DEFAULT_FOLDER / "model.safetensors").is_file(), reason="the default checkpoint is not trained yet")


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The report of one command line."""
    assert app.answer(["sim-eval", *arguments, "--json"]) == 0
    said = capsys.readouterr()
    report: dict[str, Any] = json.loads(said.out)
    return report


def test_the_expert_does_every_task_and_chance_none(capsys: pytest.CaptureFixture[str]) -> None:
    expert = evaluated(capsys, "--checkpoint", "expert", "--episodes", "3")
    assert {kind: result["successes"] for kind, result in expert["tasks"].items()} == {"reach": 3, "pick": 3, "place": 3}
    assert expert["through"] == "process" and expert["command_path"] is None and expert["versions"]["mujoco-core"]
    chance = evaluated(capsys, "--checkpoint", "random", "--episodes", "5", "--tasks", "reach,pick")
    assert [result["successes"] for result in chance["tasks"].values()] == [0, 0]
    assert chance["tasks"]["pick"]["failed_seeds"] == [0, 1, 2, 3, 4]


def test_who_is_told_another_colour_does_that(capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluated(capsys, "--checkpoint", "expert", "--episodes", "3", "--seed", "20", "--tasks", "pick",
                       "--instruction-control", "other-colour", "--phrases", "held-out")
    pick = report["tasks"]["pick"]
    assert (pick["successes"], pick["told_successes"], pick["wrong_object"]) == (0, 3, 3)
    assert report["instruction_control"] == "other-colour" and report["first_seed"] == 20 and report["phrases"] == "held-out"


def test_an_untrained_checkpoint_runs_in_batches_and_does_nothing_useful(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_untrained(tmp_path / "tiny")
    report = evaluated(capsys, "--checkpoint", str(tmp_path / "tiny"), "--episodes", "3", "--tasks", "reach", "--batch", "2",
                       "--threads", "1", "--image-control", "blank")
    reach = report["tasks"]["reach"]
    assert reach["successes"] == 0 and reach["faults"] == 0 and reach["episodes"] == 3
    assert "random numbers" in report["notes"][0]


def test_table_and_picture_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "result.png"
    assert app.answer(["sim-eval", "--checkpoint", "expert", "--episodes", "2", "--tasks", "reach", "--plot", str(picture)]) == 0
    said = capsys.readouterr()
    assert "2/2" in said.out and "100% (34%..100%)" in said.out and "mujoco-core" in said.out
    with Image.open(picture) as image:
        assert image.width > 800
    assert [path.name for path in tmp_path.iterdir()] == ["result.png"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--tasks", "reach,juggle"], r"--tasks has 'juggle', expected reach or pick or place"),
    (["--tasks", ","], "--tasks is empty"),
    (["--episodes", "0"], "--episodes"),
    (["--seed", "999990", "--episodes", "20"], "are for training"),
    (["--phrases", "latin"], "expected canonical or training or held-out"),
    (["--instruction-control", "loud"], "expected other-colour"),
    (["--image-control", "dark"], "expected blank"),
    (["--checkpoint", "expert", "--image-control", "blank"], "looks at no picture"),
    (["--checkpoint", "no/such/folder"], "there is no folder"),
    (["--checkpoint", "nonsense"], "there is no folder 'nonsense'; a checkpoint is the word 'default'"),
    (["--checkpoint", "scripted"], "does no task"),
    (["--plot", "no/such/folder/result.png"], "there is no folder no/such/folder"),
    (["--plot", "/"], "--plot / is a folder"),
    (["--ros", "--checkpoint", "random"], "'random' is none"),
    (["--ros", "--image-control", "blank"], "what the camera publishes"),
    (["--ros", "--unnorm-key", "bridge_orig", "--dtype", "float32"], "takes no --unnorm-key, --dtype"),
])
def test_what_cannot_be_done_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.answer(["sim-eval", *arguments, "--json"]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]


def evaluated_through_ros(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """The report of one command line with --ros: real nodes, in real time."""
    command = [sys.executable, "-c", "from openvla_ros.cli.app import main; main()", "sim-eval", "--ros", "--json", *arguments]
    done = subprocess.run(["timeout", "-k", "5", "200", *command], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.ros
def test_through_ros(ros_environment: dict[str, str]) -> None:
    """The expert in place of a policy: the nodes, the report and its part about the command path."""
    report = evaluated_through_ros(ros_environment, "--checkpoint", "expert", "--episodes", "2", "--tasks", "reach")
    assert report["through"] == "ros" and report["tasks"]["reach"]["successes"] >= 1
    assert report["command_path"]["steps"] > 5


# --- the shipped policy, with room for another processor's rounding: the rates it was measured at are in its card


@shipped
def test_the_shipped_policy_does_its_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = evaluated(capsys, "--episodes", "20", "--tasks", "reach,pick")["tasks"]
    assert tasks["reach"]["successes"] >= 16 and tasks["pick"]["successes"] >= 14
    assert tasks["reach"]["wrong_object"] + tasks["pick"]["wrong_object"] <= 3
    assert tasks["reach"]["faults"] == tasks["pick"]["faults"] == 0
    assert evaluated(capsys, "--episodes", "10", "--tasks", "place")["tasks"]["place"]["successes"] >= 6


@shipped
def test_the_shipped_policy_reads_and_looks(capsys: pytest.CaptureFixture[str]) -> None:
    told = evaluated(capsys, "--episodes", "6", "--tasks", "reach,pick", "--instruction-control", "other-colour")["tasks"]
    assert sum(result["successes"] for result in told.values()) <= 2
    assert sum(result["told_successes"] for result in told.values()) >= 8
    blank = evaluated(capsys, "--episodes", "6", "--tasks", "reach,pick", "--image-control", "blank")["tasks"]
    assert sum(result["successes"] for result in blank.values()) <= 1


@shipped
@pytest.mark.ros
def test_the_shipped_policy_picks_through_the_real_nodes(ros_environment: dict[str, str]) -> None:
    report = evaluated_through_ros(ros_environment, "--tasks", "pick", "--episodes", "4")
    assert report["tasks"]["pick"]["successes"] >= 2, report
    assert report["command_path"]["chunks_per_s"] > 2.0
