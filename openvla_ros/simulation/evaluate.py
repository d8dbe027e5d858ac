"""Closed loop: many episodes of each task, side by side, and how often what was done.

Comes in: whoever acts, kinds of tasks, and seeds; goes out: a TaskResult per kind. Whoever acts is asked once per step for all episodes
that still run. An evaluation through ROS judges its episodes with the same Judge and counts them with the same TaskResult.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from openvla_ros.contract import STEP_S, Action, ActionChunk, ByteArray, Observation
from openvla_ros.errors import ActionError, ConfigurationError
from openvla_ros.robot import Limits
from openvla_ros.simulation import expert
from openvla_ros.simulation.camera import Camera
from openvla_ros.simulation.loop import LATENCY_S, Loop
from openvla_ros.simulation.scene import EVALUATION_SEEDS, layout
from openvla_ros.simulation.task import KINDS, Judge, SceneState, Task

INSTRUCTION_CONTROLS = ("", "other-colour")
"""other-colour: it is told the colour of another block that is there. The task itself should then fail, and the told one succeed; what
is done first ends the episode."""

IMAGE_CONTROLS = ("", "blank")
"""blank: every picture is grey. What still succeeds then was not seen."""

GREY = 128

RANDOM_STEP_M = 0.035
"""The random policy moves by up to this on each axis: what the expert moves at most."""


@dataclass(frozen=True)
class Sight:
    """What whoever acts may use. A policy takes the observation alone; the scripted expert the state and the task as it was told."""

    observation: Observation  # its picture is grey for a StateActor
    state: SceneState
    told: Task


Act = Callable[[Sequence[Observation]], Sequence[ActionChunk]]
"""One chunk for each observation, in order. Only the first step of a chunk is played: the next one replaces the rest."""


@dataclass(frozen=True)
class StateActor:
    """Somebody who acts on the truth instead of the picture, and so needs no picture at all."""

    act: Callable[[SceneState, Task], Action]


EXPERT = StateActor(expert.act)


def random_actor(seed: int) -> Act:
    """Uniformly random steps and gripper: what chance alone reaches. Deterministic as a whole, not per episode."""
    random = np.random.default_rng(seed)

    def act(observations: Sequence[Observation]) -> list[ActionChunk]:
        moves = random.uniform(-RANDOM_STEP_M, RANDOM_STEP_M, size=(len(observations), 3))
        openings = random.uniform(0.0, 1.0, size=len(observations))
        return [ActionChunk((Action(move, np.zeros(3), float(opening)),), STEP_S, observation.stamp_ns, observation.instruction, "random")
                for move, opening, observation in zip(moves, openings, observations, strict=True)]

    return act


# ---------------------------------------------------------------------- results


@dataclass(frozen=True)
class Episode:
    """How one episode went."""

    task: Task
    told: Task  # differs from the task under a control of the instruction
    seed: int
    success: bool
    steps: int  # until success, or all that were played
    wrong: str  # colour of a block that was lifted or reached instead; empty when none was
    stuck: bool
    faults: int  # steps for which there was no action
    told_success: bool  # what was told was done


class Interval(NamedTuple):
    """Of a rate: Wilson's, 95 %."""

    low: float
    high: float


def wilson(successes: int, count: int) -> Interval:
    """Where the true rate lies with 95 % confidence (Wilson 1927); 0 to 1 when nothing was counted."""
    if count == 0:
        return Interval(0.0, 1.0)
    z, rate = 1.959964, successes / count
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True)
class TaskResult:
    """The episodes of one kind of task, counted."""

    kind: str
    episodes: tuple[Episode, ...]

    @property
    def count(self) -> int:
        """Episodes."""
        return len(self.episodes)

    @property
    def successes(self) -> int:
        """Episodes in which the task was done in time."""
        return sum(episode.success for episode in self.episodes)

    @property
    def rate(self) -> float:
        """Successes per episode; 0 without episodes."""
        return self.successes / max(1, self.count)

    @property
    def wrong(self) -> int:
        """Episodes in which another block was lifted or reached before the task was done."""
        return sum(bool(episode.wrong) for episode in self.episodes)

    @property
    def told_successes(self) -> int:
        """Episodes in which what was told was done: the successes, unless the instruction was exchanged."""
        return sum(episode.told_success for episode in self.episodes)

    @property
    def median_steps(self) -> float | None:
        """Of the successful episodes; None when there is none."""
        steps = [episode.steps for episode in self.episodes if episode.success]
        return float(statistics.median(steps)) if steps else None

    def to_mapping(self) -> dict[str, object]:
        """For JSON: counts, rates and intervals, and the seeds that failed."""
        interval, told = wilson(self.successes, self.count), wilson(self.told_successes, self.count)
        return {
            "episodes": self.count, "successes": self.successes, "rate": self.rate, "interval_95": list(interval),
            "wrong_object": self.wrong, "told_successes": self.told_successes, "told_interval_95": list(told),
            "median_steps": self.median_steps, "stuck": sum(episode.stuck for episode in self.episodes),
            "faults": sum(episode.faults for episode in self.episodes),
            "failed_seeds": [episode.seed for episode in self.episodes if not episode.success],
        }


# ---------------------------------------------------------------------- episodes


def task_of(kind: str, seed: int) -> Task:
    """The task of that kind in the layout of a seed: each of the blocks that are there is asked for equally often."""
    colours = layout(seed).colours
    return Task(kind, colours[seed % len(colours)])


def other_task(task: Task, seed: int) -> Task:
    """The same with another block that is there."""
    colours = layout(seed).colours
    return Task(task.kind, colours[(colours.index(task.colour) + 1) % len(colours)])


def phrase(task: Task, seed: int, phrases: Mapping[str, Sequence[str]] | None = None) -> str:
    """The instruction for a task: the canonical one, or one of the templates per kind, taken in turn."""
    if phrases is None:
        return task.instruction
    templates = phrases[task.kind]
    return templates[seed // len(layout(seed).colours) % len(templates)].format(colour=task.colour)


def evaluate(act: Act | StateActor, limits: Limits, kinds: Sequence[str], seeds: Sequence[int], *, batch: int = 32,
             latency_s: float = LATENCY_S, instruction_control: str = "", image_control: str = "",
             phrases: Mapping[str, Sequence[str]] | None = None, progress: Callable[[int, int], None] | None = None,
             ) -> dict[str, TaskResult]:
    """One episode per kind and seed. The same arguments give the same results if `act` is deterministic.

    limits: of the robot's profile. seeds: of EVALUATION_SEEDS. batch: most episodes side by side. latency_s: how old the picture is when
    the step that follows from it begins. phrases: templates per kind (PHRASES, HELD_OUT_PHRASES); None: the canonical instructions.
    progress: called with (episodes done, episodes in all) after each step that ended some.
    Raises ConfigurationError for arguments that are out of range, ActionError for an answer that does not fit; what `act` raises passes.
    """
    _check(kinds, seeds, batch, instruction_control, image_control)
    waiting = [_Run(kind, seed, instruction_control, phrases) for kind in kinds for seed in seeds]
    runs, total = list(waiting), len(waiting)
    loops = [Loop(limits, camera=Camera()) for _ in range(min(batch, total))]
    waiting.reverse()
    active: list[_Run] = []
    while waiting or active:
        while loops and waiting:
            run = waiting.pop()
            run.begin(loops.pop(), pictures=not isinstance(act, StateActor) and not image_control)
            active.append(run)
        for run, action in zip(active, _ask(act, [run.sight() for run in active]), strict=True):
            run.play(action, latency_s)
        ended = [run for run in active if run.judge.finished or run.told_judge.finished]
        if ended:
            active = [run for run in active if run not in ended]
            loops += [run.end() for run in ended]
            if progress is not None:
                progress(total - len(waiting) - len(active), total)
    return {kind: TaskResult(kind, tuple(run.episode() for run in runs if run.task.kind == kind)) for kind in kinds}


class _Run:
    """One episode while it runs."""

    def __init__(self, kind: str, seed: int, instruction_control: str, phrases: Mapping[str, Sequence[str]] | None) -> None:
        self.seed, self.task = seed, task_of(kind, seed)
        self.told = other_task(self.task, seed) if instruction_control else self.task
        self.judge, self.told_judge = Judge(self.task), Judge(self.told)
        self._instruction = phrase(self.told, seed, phrases)
        self._faults = 0
        self._loop: Loop | None = None
        self._pictures = False
        self._seen: tuple[ByteArray, SceneState] | None = None

    def begin(self, loop: Loop, pictures: bool) -> None:
        """pictures: they are drawn; else grey ones are shown."""
        loop.begin(self.seed)
        self._loop, self._pictures = loop, pictures
        self._seen = (loop.picture() if pictures else self._blank(loop)), loop.state()

    def sight(self) -> Sight:
        assert self._seen is not None and self._loop is not None, "it has begun"
        picture, state = self._seen
        return Sight(Observation(picture, self._instruction, round(self._loop.tabletop.time_s * 1e9)), state, self.told)

    def play(self, action: Action | None, latency_s: float) -> None:
        """None: there is no action, and the arm holds."""
        assert self._loop is not None, "it has begun"
        if action is None:
            self._faults += 1
            action = Action(np.zeros(3), np.zeros(3), self._loop.opening)
        if self._pictures:
            self._seen = self._loop.step(action, latency_s)
        else:
            self._seen = self._blank(self._loop), self._loop.step_unseen(action, latency_s)
        state = self._loop.state()
        for judge in (self.judge, self.told_judge):
            judge.update(state)

    def end(self) -> Loop:
        """Hand the loop on."""
        assert self._loop is not None, "it has begun"
        loop, self._loop, self._seen = self._loop, None, None
        return loop

    def episode(self) -> Episode:
        judge = self.judge
        return Episode(self.task, self.told, self.seed, judge.success, judge.success_step or judge.steps, judge.wrong, judge.stuck,
                       self._faults, self.told_judge.success)

    @staticmethod
    def _blank(loop: Loop) -> ByteArray:
        return np.full((loop.camera.height, loop.camera.width, 3), GREY, np.uint8)


def _ask(act: Act | StateActor, sights: Sequence[Sight]) -> list[Action | None]:
    """The next action of each, None where there is none."""
    if isinstance(act, StateActor):
        return [act.act(sight.state, sight.told) for sight in sights]
    chunks = act([sight.observation for sight in sights])
    if len(chunks) != len(sights):
        raise ActionError(f"{len(sights)} observations were answered with {len(chunks)} chunks, expected one for each.")
    for chunk in chunks:
        if chunk.steps and not math.isclose(chunk.step_s, STEP_S):
            raise ActionError(f"a chunk has steps of {chunk.step_s:g} s, this loop plays steps of {STEP_S:g} s.")
    return [chunk.steps[0] if chunk.steps and np.isfinite(chunk.steps[0].to_vector()).all() else None for chunk in chunks]


def _check(kinds: Sequence[str], seeds: Sequence[int], batch: int, instruction_control: str, image_control: str) -> None:
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigurationError(f"tasks {unknown} are unknown, expected some of {', '.join(KINDS)}.")
    if not kinds or not seeds or batch < 1:
        raise ConfigurationError(f"there is nothing to evaluate: {len(kinds)} tasks, {len(seeds)} seeds, {batch} at a time.")
    if foreign := [seed for seed in seeds if seed not in EVALUATION_SEEDS]:
        raise ConfigurationError(f"seed {foreign[0]} is not for evaluation; those are {EVALUATION_SEEDS.start} to "
                                 f"{EVALUATION_SEEDS.stop - 1}, and training draws from the others.")
    for name, value, known in (("instruction control", instruction_control, INSTRUCTION_CONTROLS),
                               ("image control", image_control, IMAGE_CONTROLS)):
        if value not in known:
            raise ConfigurationError(f"{name} is {value!r}, expected {' or '.join(repr(one) for one in known[1:])}, or nothing.")
