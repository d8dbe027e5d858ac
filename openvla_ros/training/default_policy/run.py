"""The whole training of the default policy, from nothing to a checkpoint, in a folder from which it can go on at any time.

    work/          recipe.json, state.safetensors, log.jsonl, frames/, policy/ (the newest averaged weights as a checkpoint)
    checkpoint/    the result: weights, card, plots, log

All processes walk through the same stages. Whether a stage was done is seen from its files, and every random draw follows from
(seed, stage, step, process), so a killed run that is resumed makes what it would have made.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from openvla_ros.errors import TrainingError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla.layout import complete, is_ours, layout_shapes, write_checkpoint
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.policy.openvla.model import ModelShape
from openvla_ros.policy.openvla.policy import OpenvlaPolicy
from openvla_ros.robot import Limits
from openvla_ros.simulation.evaluate import evaluate
from openvla_ros.simulation.task import KINDS
from openvla_ros.training.default_policy.batches import KEY, STATISTICS, Batches
from openvla_ros.training.default_policy.card import plot_closed_loop, plot_training, write_card
from openvla_ros.training.default_policy.collect import collect
from openvla_ros.training.default_policy.frames import FrameSet, has_frames, save_frames
from openvla_ros.training.default_policy.network import WORDS, Network, network_shape
from openvla_ros.training.default_policy.objective import instruction_loss, picture_loss
from openvla_ros.training.default_policy.recipe import Recipe, Round
from openvla_ros.training.default_policy.trial import merge_shares, run_trials, write_share
from openvla_ros.training.loop import Trainer, write_whole
from openvla_ros.training.workers import total, wait_for_all, worker_group

Report = Callable[[str, int, int], None]
"""(what is being done, done, of how many)"""

UNFINISHED = "# Default policy, in training\n\nWritten at update {step}. Not the finished checkpoint: that one lies beside this folder.\n"

AUTOCAST = torch.bfloat16
"""Products of matrices in training are taken in bfloat16: a fifth faster on processors that have it. Inference is in float32."""

ATTENTION = SDPBackend.MATH
"""Torch's fused attention is slow backward on a processor: it took a third of an update. The plain products give the same numbers."""

PROGRESS_SEEDS = range(0, 1000)
"""Layouts on which the policy is tried out during training. Training does not draw them; the card's numbers come from others."""

BATCH_EPISODES = 25
"""Episodes side by side, per process."""

DATA_SEED, STEP_SEED = 2, 3
"""Kinds of random draws."""


@dataclass(frozen=True)
class Outcome:
    """A finished training. trials: trial -> kind of task -> counts, rates and intervals, see `trial.merge_shares`."""

    checkpoint: Path
    parameters: int
    log: Sequence[Mapping[str, Any]]
    trials: Mapping[str, Mapping[str, Mapping[str, Any]]]


def train(folder: Path, recipe: Recipe, seed: int, workers: int, limits: Limits, resume: bool, report: Report) -> Outcome:
    """Train, or go on training, until the recipe's last update; then evaluate and write the checkpoint with its card.

    Raises TrainingError if the folder is not fit, ConfigurationError, CheckpointError.
    """
    work = folder / "work"
    prepare(work, recipe, seed, workers, resume)
    with worker_group(work, workers, run_stages, work, recipe, seed, workers, limits, None):
        run_stages(0, work, recipe, seed, workers, limits, report)
    return finish(folder, recipe, seed, workers)


def finish(folder: Path, recipe: Recipe, seed: int, workers: int, remarks: str = "") -> Outcome:
    """Write the checkpoint of a training whose stages are all done. remarks: what else its card should say."""
    work, shape = folder / "work", network_shape()
    trainer = Trainer(Network(shape, seed))
    trainer.load(work / "state.safetensors")
    log, trials = read_log(work), merge_shares(work, workers)
    frames = len(FrameSet(work / "frames", frame_names(recipe, workers, recipe.last_step)))
    parameters = sum(math.prod(size) for size in layout_shapes(shape).values())
    card = write_card(recipe, seed, workers, shape, parameters, log, trials, frames, remarks)
    extra = {"training_log.jsonl": (work / "log.jsonl").read_bytes(), "evaluation.json": (json.dumps(trials, indent=1) + "\n").encode(),
             "training.png": plot_training(log), "closed_loop.png": plot_closed_loop(log, trials)}
    write_policy(folder / "checkpoint", trainer, shape, card, extra)
    return Outcome(folder / "checkpoint", parameters, log, trials)


def prepare(work: Path, recipe: Recipe, seed: int, workers: int, resume: bool) -> None:
    """Make the folder, or see that what is in it is this run. Raises TrainingError."""
    result = work.parent / "checkpoint"
    if result.exists() and not is_ours(result, untrained=False):  # said now, not after an hour
        raise TrainingError(f"{result} was not written by a training, so this one must not replace it. Choose another folder.")
    path, described = work / "recipe.json", {"recipe": asdict(recipe), "seed": seed, "workers": workers}
    described = json.loads(json.dumps(described))  # tuples become lists, as in the file
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(described, indent=1).encode())
        return
    if not resume:
        raise TrainingError(f"{work.parent} holds a training already. Go on with it by --resume, or choose another folder.")
    stored = json.loads(path.read_text(encoding="utf-8"))
    pairs = [(name, stored.get(name), described[name]) for name in ("seed", "workers")]
    pairs += [(f"recipe.{name}", stored["recipe"].get(name), value) for name, value in described["recipe"].items()]
    differing = [f"{name} {then!r}, now {now!r}" for name, then, now in pairs if then != now]
    if differing:
        raise TrainingError(f"{work.parent} holds another training: {'; '.join(differing)}. Resume it as it was begun, or choose "
                            "another folder.")


def run_stages(worker: int, work: Path, recipe: Recipe, seed: int, workers: int, limits: Limits, report: Report | None) -> None:
    """Everything one process does."""
    Run(worker, work, recipe, seed, workers, limits, report).go()


class Run:
    """One process of a training."""

    def __init__(self, worker: int, work: Path, recipe: Recipe, seed: int, workers: int, limits: Limits, report: Report | None) -> None:
        self.worker, self.work, self.recipe, self.seed, self.workers, self.limits = worker, work, recipe, seed, workers, limits
        self.report: Report = report or (lambda stage, done, count: None)
        self.shape = network_shape()
        self.network = Network(self.shape, seed)
        self.trainer = Trainer(self.network)
        self.notes = {"wall_s": 0.0, "cpu_s": 0.0}
        if (work / "state.safetensors").is_file():
            self.notes = self.trainer.load(work / "state.safetensors")
        self.clock = time.perf_counter(), time.process_time()
        if worker == 0:
            forget_later(work, self.trainer.step)

    def go(self) -> None:
        """All stages from where the run is."""
        recipe, trainer = self.recipe, self.trainer
        self.demonstrate()
        while True:
            step = trainer.step
            for turn in recipe.rounds:
                if turn.step == step:
                    self.let_drive(turn)
            if self.is_measured_at(step) and not any(record["step"] == step and "closed_loop" in record for record in read_log(self.work)):
                self.measure()
            if step >= recipe.last_step:
                return self.try_out()
            self.learn(until=min(event for event in self.events() if event > step))

    def is_measured_at(self, step: int) -> bool:
        """Whether the policy is tried out after this update; after the last one come the trials."""
        past = step - self.recipe.picture_steps
        return past > 0 and step < self.recipe.last_step and past % self.recipe.evaluate_every == 0

    def events(self) -> list[int]:
        """Updates at which something else happens than learning."""
        recipe = self.recipe
        return [*(turn.step for turn in recipe.rounds), recipe.picture_steps, recipe.focus_step, recipe.last_step,
                *range(recipe.picture_steps, recipe.last_step, recipe.evaluate_every)]

    # ------------------------------------------------------------------ data

    def demonstrate(self) -> None:
        """The expert drives."""
        recipe = self.recipe
        parts, count = demonstration_parts(recipe, self.workers), min(recipe.part, recipe.demonstrations // self.workers)
        for part in range(parts):
            name = frame_name("demonstrations", part, self.worker)
            if has_frames(self.work / "frames", name):
                continue
            random = np.random.default_rng([self.seed, DATA_SEED, 0, part, self.worker])
            report = partial(self.report_part, part * count, parts * count)
            recorder = collect(count, recipe.expert_driving, self.limits, random, report=report)
            save_frames(self.work / "frames", name, recorder.pictures, recorder.truth())
        wait_for_all()

    def report_part(self, before: int, count: int, done: int) -> None:
        """Progress of the demonstrations."""
        self.report("demonstrations", before + done, count)

    def let_drive(self, turn: Round) -> None:
        """The policy drives."""
        number = self.recipe.rounds.index(turn) + 1
        name = frame_name("round", number, self.worker)
        policy = self.current_policy()
        if not has_frames(self.work / "frames", name):
            random = np.random.default_rng([self.seed, DATA_SEED, number, 0, self.worker])
            count = turn.frames // self.workers
            recorder = collect(count, self.recipe.policy_driving, self.limits, random, policy.act_batch, self.recipe.worlds,
                               report=lambda done: self.report(f"policy drives, round {number}", done, count))
            save_frames(self.work / "frames", name, recorder.pictures, recorder.truth())
        wait_for_all()

    def frames(self) -> FrameSet:
        """Everything that was collected up to this update."""
        return FrameSet(self.work / "frames", frame_names(self.recipe, self.workers, self.trainer.step))

    # ------------------------------------------------------------------ learning

    def learn(self, until: int) -> None:
        """Updates up to `until`."""
        recipe, trainer = self.recipe, self.trainer
        focused = trainer.step >= recipe.focus_step
        batches = Batches(self.frames(), self.shape, focused)
        instructions = recipe.focus_instructions if focused else recipe.instructions
        gathered: list[dict[str, float]] = []
        while trainer.step < until:
            step = trainer.step
            random = np.random.default_rng([self.seed, STEP_SEED, step, self.worker])
            asking = step >= recipe.picture_steps
            frames = (recipe.batch_frames if asking else recipe.picture_frames) // self.workers
            batch = batches.draw(random, frames, instructions if asking else 0)
            with torch.autocast("cpu", AUTOCAST), sdpa_kernel(ATTENTION):
                if asking:
                    tokens, heads, logged = instruction_loss(self.network, batch, batch.pixels)
                    loss = tokens + heads
                    numbers = {"loss": float(tokens.detach()), **{name: float(value) for name, value in logged.items()}}
                else:
                    loss, numbers = picture_loss(self.network, self.network.model.see(batch.pixels), batch), {}
                    heads = loss
            norm = trainer.update(loss, recipe.rate(step))
            gathered.append({**numbers, "heads_loss": float(heads.detach()), "gradient": norm})
            self.report("learning to see" if not asking else f"learning to act, off by {gathered[-1]['l1_bins']:.1f} bins",
                        trainer.step, recipe.last_step)
            if trainer.step % recipe.save_every == 0 or trainer.step == until:
                self.save(gathered)
                gathered = []

    def save(self, gathered: Sequence[Mapping[str, float]]) -> None:
        """State and log, by process 0; the numbers are means over all processes since the last time."""
        now = time.perf_counter(), time.process_time()
        names = list(gathered[0])
        sums = total([now[1] - self.clock[1], *(float(np.mean([numbers[name] for numbers in gathered])) for name in names)])
        self.notes = {"wall_s": self.notes["wall_s"] + now[0] - self.clock[0], "cpu_s": self.notes["cpu_s"] + sums[0]}
        self.clock = now
        if self.worker == 0:
            means = {name: round(value / self.workers, 5) for name, value in zip(names, sums[1:], strict=True)}
            self.trainer.save(self.work / "state.safetensors", self.notes)
            append_log(self.work, {"step": self.trainer.step, "rate": self.recipe.rate(self.trainer.step - 1), **self.notes, **means})
        wait_for_all()

    # ------------------------------------------------------------------ the policy as it is

    def current_policy(self) -> OpenvlaPolicy:
        """The averaged weights, written and loaded as any checkpoint is."""
        folder = self.work / "policy"
        if self.worker == 0:
            write_policy(folder, self.trainer, self.shape, UNFINISHED.format(step=self.trainer.step))
        wait_for_all()
        return load_openvla(PolicySettings(str(folder), dtype="float32", device="cpu", threads=1), progress=False)

    def measure(self) -> None:
        """Closed loop, each process its share of the layouts. The log gets successes, wrong objects and episodes per task."""
        policy, seeds = self.current_policy(), PROGRESS_SEEDS[:self.recipe.evaluate_episodes]
        results = evaluate(policy.act_batch, self.limits, KINDS, seeds[self.worker::self.workers], batch=BATCH_EPISODES,
                           progress=lambda done, count: self.report("trying out", done, count))
        sums = total([float(value) for kind in KINDS for value in (results[kind].count, results[kind].successes, results[kind].wrong)])
        if self.worker == 0:
            closed_loop = {kind: dict(zip(("episodes", "successes", "wrong"), map(int, sums[3 * row:3 * row + 3]), strict=True))
                           for row, kind in enumerate(KINDS)}
            append_log(self.work, {"step": self.trainer.step, **self.notes, "closed_loop": closed_loop})
        wait_for_all()

    def try_out(self) -> None:
        """The trials of the card."""
        policy = self.current_policy()  # all processes meet in it, so also one whose share was done before a kill
        if not (self.work / f"trial-{self.worker}.json").is_file():
            counted = run_trials(policy.act_batch, self.limits, self.recipe.trial_episodes, self.worker, self.workers,
                                 self.report)
            write_share(self.work, self.worker, counted)
        wait_for_all()


def write_policy(folder: Path, trainer: Trainer, shape: ModelShape, card: str, extra: Mapping[str, bytes] | None = None) -> int:
    """The averaged weights in the published layout; returns the number of stored parameters. The training heads are left out."""
    tensors = {name.removeprefix("model."): tensor for name, tensor in trainer.average.items() if name.startswith("model.")}
    statistics = {"action": {"q01": STATISTICS.q01.tolist(), "q99": STATISTICS.q99.tolist(), "mask": STATISTICS.mask.tolist()}}
    return write_checkpoint(folder, shape, complete(shape, tensors), WORDS, KEY, statistics, card, torch.float16, extra=extra, force=True)


def demonstration_parts(recipe: Recipe, workers: int) -> int:
    """Files per process of the expert's frames."""
    return -(-recipe.demonstrations // (recipe.part * workers))


def frame_names(recipe: Recipe, workers: int, step: int) -> list[str]:
    """Of every collection that is there at an update."""
    collections = [("demonstrations", part) for part in range(demonstration_parts(recipe, workers))]
    collections += [("round", number) for number, turn in enumerate(recipe.rounds, start=1) if turn.step <= step]
    return [frame_name(stage, number, worker) for stage, number in collections for worker in range(workers)]


def frame_name(stage: str, number: int, worker: int) -> str:
    """Of a collection."""
    return f"{stage}-{number:02d}-{worker}"


def read_log(work: Path) -> list[dict[str, Any]]:
    """All whole records; a line cut off by a kill is not one."""
    path = work / "log.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def append_log(work: Path, record: Mapping[str, Any]) -> None:
    """One more record."""
    with (work / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(record)) + "\n")


def forget_later(work: Path, step: int) -> None:
    """Drop what the log says about updates after `step`: they are made again."""
    kept = [record for record in read_log(work) if record["step"] <= step]
    write_whole(work / "log.jsonl", "".join(json.dumps(record) + "\n" for record in kept).encode())
