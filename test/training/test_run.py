"""The whole run, small: it learns, it survives SIGKILL, its folder is its own, its checkpoint is one like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openvla_ros.errors import TrainingError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.training.default_policy.card import CONTROLS, plot_closed_loop, plot_training, write_card
from openvla_ros.training.default_policy.network import Network, network_shape
from openvla_ros.training.default_policy.recipe import FULL, RECIPES, SMOKE
from openvla_ros.training.default_policy.run import append_log, forget_later, prepare, read_log, write_policy
from openvla_ros.training.default_policy.trial import TRIALS, merge_shares, write_share
from openvla_ros.training.loop import Trainer


def records(folder: Path) -> list[dict[str, Any]]:
    return read_log(folder / "work")


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """`openvla-ros train-default --smoke` in a process group of its own, as it is started by hand."""
    command = [sys.executable, "-c", "from openvla_ros.cli.app import main; main()", "train-default", "--smoke", "--output", str(folder)]
    return subprocess.Popen([*command, *options], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, start_new_session=True)


def wait_for_updates(child: subprocess.Popen[bytes], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 300.0
    while not any(record["step"] >= step for record in records(folder)):
        assert child.poll() is None and child.stderr is not None, child.stderr.read().decode()
        assert time.monotonic() < deadline, f"no update {step} in 300 s"
        time.sleep(0.1)


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    child = start(tmp_path)
    try:
        wait_for_updates(child, tmp_path, 40)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    before, made = records(tmp_path), sorted((tmp_path / "work/frames").iterdir())
    times = {path: path.stat().st_mtime_ns for path in made}
    assert [record["step"] for record in before][:2] == [20, 40] and len(made) == 4
    child = start(tmp_path, "--resume")
    try:
        wait_for_updates(child, tmp_path, before[-1]["step"] + 20)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    after = records(tmp_path)
    assert after[:len(before)] == before, "what was learned was not learned again"
    assert [record["step"] for record in after] == [20 * number for number in range(1, len(after) + 1)]
    assert after[-1]["wall_s"] > before[-1]["wall_s"] and after[-1]["heads_loss"] < 0.8 * after[0]["heads_loss"]
    assert {path: path.stat().st_mtime_ns for path in made} == times, "the data were not made again"


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    prepare(tmp_path / "work", SMOKE, 0, 2, resume=False)
    with pytest.raises(TrainingError, match="holds a training already"):
        prepare(tmp_path / "work", SMOKE, 0, 2, resume=False)
    prepare(tmp_path / "work", SMOKE, 0, 2, resume=True)
    with pytest.raises(TrainingError, match="seed 0, now 1"):
        prepare(tmp_path / "work", SMOKE, 1, 2, resume=True)
    with pytest.raises(TrainingError, match="batch_frames"):
        prepare(tmp_path / "work", replace(SMOKE, batch_frames=8), 0, 2, resume=True)


def test_the_log_forgets_what_is_made_again(tmp_path: Path) -> None:
    for step in (20, 40, 60):
        append_log(tmp_path, {"step": step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 8')  # killed in the middle of a line
    forget_later(tmp_path, 40)
    assert [record["step"] for record in read_log(tmp_path)] == [20, 40]


def test_rounds_and_evaluations_fall_on_updates_of_the_recipe() -> None:
    for recipe in RECIPES.values():
        assert all(recipe.picture_steps < turn.step < recipe.last_step for turn in recipe.rounds)
        assert recipe.picture_frames % 2 == 0 and recipe.batch_frames % 2 == 0
        assert recipe.rate(recipe.last_step - 1) < 0.2 * recipe.schedule.peak
        assert recipe.rate(recipe.picture_steps) < recipe.schedule.peak / 10


def test_what_is_written_loads_like_any_checkpoint(tmp_path: Path) -> None:
    shape = network_shape()
    trainer = Trainer(Network(shape, 0))
    write_policy(tmp_path / "policy", trainer, shape, "a card")
    policy = load_openvla(PolicySettings(str(tmp_path / "policy"), dtype="float32", device="cpu"), progress=False)
    assert policy.statistics.key == "widowx_sim" and policy.notes == ()
    size = sum(path.stat().st_size for path in (tmp_path / "policy").iterdir())
    assert size < 12e6
    write_policy(tmp_path / "policy", trainer, shape, "another card")
    assert (tmp_path / "policy/README.md").read_text() == "another card"


def counts(successes: int) -> dict[str, Any]:
    row = {"episodes": 10, "successes": successes, "wrong": 1, "told_successes": 7, "stuck": 0, "faults": 2}
    return {trial.name: {kind: dict(row) for kind in ("reach", "pick", "place")} for trial in TRIALS}


def test_the_card_says_what_was_counted(tmp_path: Path) -> None:
    for worker, successes in enumerate((9, 6)):
        write_share(tmp_path, worker, counts(successes))
    trials = merge_shares(tmp_path, 2)
    assert trials["canonical instructions"]["pick"]["successes"] == 15
    assert trials["canonical instructions"]["pick"]["rate"] == 0.75
    loop = {kind: {"episodes": 40, "successes": 31, "wrong": 0} for kind in ("reach", "pick", "place")}
    log = [{"step": 700, "wall_s": 600.0, "cpu_s": 1100.0,
            "l1_bins": 9.0, "dx_bins": 8.5, "dy_bins": 9.0, "dz_bins": 9.5, "gripper_error": 0.02},
           {"step": 700, "wall_s": 660.0, "cpu_s": 1200.0, "closed_loop": loop}]
    card = write_card(FULL, 3, 2, network_shape(), 3_700_000, log, trials, 40_000, "A remark.")
    for text in ("15/20 = 75.0% (53.1% to 88.8%)", "seed 3", "| 700 | 11 | 8.5, 9.0, 9.5 | 2.0% | 31/40 | 31/40 | 31/40 |", "A remark.",
                 "says nothing about how good the 7B model is",
                 "It took 11 min; of processor time it took 20 min, so 10 min on 2 free cores.", "the told one 14/20", *CONTROLS):
        assert text in card
    assert "{" not in card and len(max(card.splitlines(), key=len)) < 400
    write_share(tmp_path, 0, counts(10))  # nothing failed: the interval ends where the rate is, but for rounding
    for picture in (plot_training(log), plot_closed_loop(log, trials), plot_closed_loop(log, merge_shares(tmp_path, 1))):
        assert picture.startswith(b"\x89PNG") and len(picture) > 5000
    assert json.loads(json.dumps(trials)) == trials
