"""Frames for training: the simulated arm is driven, with mistakes, and the expert says of every frame what each task would want.

Who drives is the expert at first and the policy in training later (DAgger): the labels are the expert's either way, and free,
because it is a pure function of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.contract import Action, ActionChunk, ByteArray, FloatArray, Observation
from openvla_ros.robot import Limits
from openvla_ros.simulation import expert
from openvla_ros.simulation.camera import Camera
from openvla_ros.simulation.loop import Loop
from openvla_ros.simulation.scene import TRAINING_SEEDS
from openvla_ros.simulation.task import COLOURS, KINDS, PHRASES, Judge, SceneState, Task
from openvla_ros.training.default_policy.frames import Truth
from openvla_ros.training.default_policy.network import ENTITIES

ActBatch = Callable[[Sequence[Observation]], Sequence[ActionChunk]]
"""The policy in training, many observations at once."""

STAY = Action(np.zeros(3), np.zeros(3), 1.0)


@dataclass(frozen=True)
class Driving:
    """How an arm is driven for data.

    head_start_steps: an episode begins after 0 to so many steps of the expert that nobody records, so every part of a task is a beginning.
    noisy_share: share of the steps that get noise of noise_m [m] on each axis; fingers_share: share with the gripper the wrong
    way round. switch_share: share of the steps at which another task is drawn, done_share: of those at which the task is done.
    latency_s: the picture is taken so long before the end of the running step, drawn anew each time. kinds: how often each kind of task.
    """

    episode_steps: int
    head_start_steps: int = 25
    noisy_share: float = 0.35
    noise_m: tuple[float, float, float] = (0.012, 0.012, 0.008)
    fingers_share: float = 0.02
    switch_share: float = 0.05
    done_share: float = 0.35
    latency_s: tuple[float, float] = (0.02, 0.14)
    kinds: tuple[float, float, float] = (0.25, 0.4, 0.35)


class Drive:
    """One world, one episode after the other, for ever. picture, state, task and instruction are those of the newest look."""

    def __init__(self, driving: Driving, limits: Limits, random: np.random.Generator) -> None:
        self.driving, self.random = driving, random
        self.loop = Loop(limits)
        self.begin()

    def begin(self) -> None:
        """A new layout of those for training, some way into a task."""
        self.loop.begin(int(self.random.integers(TRAINING_SEEDS.start, TRAINING_SEEDS.stop)))
        self.left = self.driving.episode_steps
        self.state = self.loop.state()
        self.draw_task()
        for _ in range(int(self.random.integers(self.driving.head_start_steps + 1))):
            self.state = self.loop.step_unseen(expert.act(self.state, self.task), self.draw_latency())
            if self.task.kind != "reach" and self.random.random() < 0.02:
                self.draw_task()
        self.picture = self.loop.picture()
        self.state = self.loop.state()

    def draw_task(self) -> None:
        """Another thing to do."""
        kind = str(self.random.choice(KINDS, p=self.driving.kinds))
        self.task = Task(kind, str(self.random.choice(list(self.state.blocks))))
        templates = PHRASES[kind]
        self.instruction = templates[int(self.random.integers(len(templates)))].format(colour=self.task.colour)
        self.judge = Judge(self.task)

    def draw_latency(self) -> float:
        """Seconds before the end of a step."""
        return float(self.random.uniform(*self.driving.latency_s))

    def advance(self, action: Action) -> None:
        """Play an action, with a mistake now and then, and look."""
        driving, random = self.driving, self.random
        if random.random() < driving.noisy_share:
            action = Action(action.translation_m + random.normal(size=3) * driving.noise_m, action.rotation_rad, action.gripper)
        if random.random() < driving.fingers_share:
            action = Action(action.translation_m, action.rotation_rad, 1.0 - action.gripper)
        self.picture, self.state = self.loop.step(action, self.draw_latency())
        self.judge.update(self.state)
        self.left -= 1
        if self.left <= 0:
            self.begin()
        elif random.random() < (driving.done_share if self.judge.success else driving.switch_share):
            self.draw_task()


class Recorder:
    """Gathers looks and their labels."""

    def __init__(self) -> None:
        self.camera = Camera()  # for where things are in the picture
        self.pictures: list[ByteArray] = []
        self.rows: list[tuple[FloatArray, FloatArray, float, int, FloatArray]] = []

    def add(self, picture: ByteArray, state: SceneState) -> None:
        """One more frame."""
        positions = np.full((len(ENTITIES), 3), np.nan)
        for entity, name in enumerate(ENTITIES):
            place = {"plate": state.plate_m, "tool": state.tool_m}.get(name, state.blocks.get(name))
            if place is not None:
                positions[entity] = place
        places = np.array([self.camera.project(position) for position in positions])
        self.pictures.append(picture)
        self.rows.append((positions, places, state.opening, COLOURS.index(state.held) if state.held else -1, label(state)))

    def truth(self) -> Truth:
        """What was gathered beside the pictures."""
        positions, places, opening, held, actions = zip(*self.rows, strict=True)
        return Truth(np.array(positions, np.float32), np.array(places, np.float32), np.array(opening, np.float32),
                     np.array(held, np.int64), np.array(actions, np.float32))


def label(state: SceneState) -> FloatArray:
    """[kinds, colours, 4] what the expert would do for every task: dx, dy, dz [m], gripper; NaN for blocks that are not there."""
    actions = np.full((len(KINDS), len(COLOURS), 4), np.nan)
    for kind, name in enumerate(KINDS):
        for colour in state.blocks:
            action = expert.act(state, Task(name, colour))
            actions[kind, COLOURS.index(colour)] = [*action.translation_m, action.gripper]
    return actions


def collect(count: int, driving: Driving, limits: Limits, random: np.random.Generator, act: ActBatch | None = None, worlds: int = 1,
            report: Callable[[int], None] = lambda done: None) -> Recorder:
    """`count` frames or a few more. act: the policy that drives `worlds` arms at once; without it the expert drives.

    report: called with the number of frames so far.
    """
    recorder, drives = Recorder(), [Drive(driving, limits, random) for _ in range(worlds)]
    while len(recorder.rows) < count:
        for drive in drives:
            recorder.add(drive.picture, drive.state)
        if act is None:
            actions = [expert.act(drive.state, drive.task) for drive in drives]
        else:
            chunks = act([Observation(drive.picture, drive.instruction, stamp_ns=0) for drive in drives])
            actions = [chunk.steps[0] if chunk.steps else STAY for chunk in chunks]
        for drive, action in zip(drives, actions, strict=True):
            drive.advance(action)
        report(len(recorder.rows))
    return recorder
