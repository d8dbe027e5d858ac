"""What the finished policy can do, and what it cannot: the evaluation that stands in its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openvla_ros.robot import Limits
from openvla_ros.simulation.evaluate import EXPERT, Act, StateActor, evaluate, random_actor, wilson
from openvla_ros.simulation.task import HELD_OUT_PHRASES, KINDS, PHRASES
from openvla_ros.training.loop import write_whole

TRIAL_SEEDS = range(1000, 2000)
"""Layouts of the evaluation in the card: not those on which training was watched, and none that training drew."""

UNKNOWN_WORDS: Mapping[str, Sequence[str]] = {
    "reach": ("hover over the {colour} brick",), "pick": ("grasp this {colour} brick",), "place": ("drop the {colour} brick into a dish",)}
"""Ways to ask with words that it never saw; only the colour is known."""

NO_TASK: Mapping[str, Sequence[str]] = {kind: ("sing a song",) for kind in KINDS}
"""An instruction that asks for nothing here."""


@dataclass(frozen=True)
class Trial:
    """One row of the card. share: of the full number of episodes."""

    name: str
    share: float
    options: Mapping[str, Any]
    actor: str = ""  # "expert" or "random" instead of the policy


TRIALS = (
    Trial("canonical instructions", 1.0, {}),
    Trial("all phrases of training", 0.15, {"phrases": PHRASES}),
    Trial("phrases it never saw", 0.15, {"phrases": HELD_OUT_PHRASES}),
    Trial("told another colour", 0.15, {"instruction_control": "other-colour"}),
    Trial("grey picture", 0.1, {"image_control": "blank"}),
    Trial("unknown words", 0.1, {"phrases": UNKNOWN_WORDS}),
    Trial("no task at all", 0.1, {"phrases": NO_TASK}),
    Trial("random actions", 0.1, {}, "random"),
    Trial("the scripted expert", 0.15, {}, "expert"),
)

COUNTS = ("episodes", "successes", "wrong", "told_successes", "stuck", "faults")


def run_trials(act: Act, limits: Limits, episodes: int, worker: int, workers: int, report: Callable[[str, int, int], None]
               ) -> dict[str, dict[str, dict[str, int]]]:
    """This process's share of all trials: trial -> kind of task -> COUNTS."""
    actors: dict[str, Act | StateActor] = {"expert": EXPERT, "random": random_actor(worker)}
    counted = {}
    for trial in TRIALS:
        seeds = TRIAL_SEEDS[:max(workers, round(trial.share * episodes))][worker::workers]
        results = evaluate(actors.get(trial.actor, act), limits, KINDS, seeds, progress=partial(report, trial.name), **trial.options)
        counted[trial.name] = {kind: {"episodes": result.count, "successes": result.successes, "wrong": result.wrong,
                                      "told_successes": result.told_successes, "stuck": sum(one.stuck for one in result.episodes),
                                      "faults": sum(one.faults for one in result.episodes)} for kind, result in results.items()}
    return counted


def write_share(work: Path, worker: int, counted: Mapping[str, Any]) -> None:
    """Leave this process's counts for process 0."""
    write_whole(work / f"trial-{worker}.json", json.dumps(counted).encode())


def merge_shares(work: Path, workers: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Counts of all processes together, with rate and 95 % interval of what was asked for and of what was told."""
    shares = [json.loads((work / f"trial-{worker}.json").read_text(encoding="utf-8")) for worker in range(workers)]
    merged: dict[str, dict[str, dict[str, Any]]] = {}
    for trial in TRIALS:
        merged[trial.name] = {}
        for kind in KINDS:
            row: dict[str, Any] = {name: sum(share[trial.name][kind][name] for share in shares) for name in COUNTS}
            row["rate"] = row["successes"] / row["episodes"]
            row["interval_95"] = list(wilson(row["successes"], row["episodes"]))
            row["told_interval_95"] = list(wilson(row["told_successes"], row["episodes"]))
            merged[trial.name][kind] = row
    return merged
