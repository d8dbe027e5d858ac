"""From labelled frames to what one training step reads: pixels, packed instructions, and answers to the heads' questions.

Prompt, bins, normalisation and image path are the functions that inference uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from openvla_ros.contract import FloatArray, Observation
from openvla_ros.policy.openvla.layout import END_ID, make_action_tokens, make_processor, make_prompt_encoder
from openvla_ros.policy.openvla.model import ModelShape
from openvla_ros.policy.openvla.preprocess import ImagePath
from openvla_ros.policy.statistics import ActionStatistics
from openvla_ros.simulation.task import COLOURS, KINDS, PHRASES, PLATE_RADIUS_M
from openvla_ros.training.default_policy.frames import FrameSet, Truth
from openvla_ros.training.default_policy.network import ENTITIES, WORDS
from openvla_ros.training.examples import make_example
from openvla_ros.training.packing import Pack, pack_examples

KEY = "widowx_sim"
"""Name of the action statistics in the checkpoint."""

LARGEST_STEP_M = 0.04
"""Range of the translation bins, on both sides of exactly 0: the expert's largest step and a margin for the soft labels."""

STATISTICS = ActionStatistics(KEY, q01=np.array([*3 * [-LARGEST_STEP_M], 0.0, 0.0, 0.0, 0.0]),
                              q99=np.array([*3 * [LARGEST_STEP_M], 0.0, 0.0, 0.0, 1.0]), mask=np.array([True] * 6 + [False]))
"""The tool never turns, so the rotations have no range; the gripper is not scaled, as in the released models."""

SCENE_CENTRE_M, SCENE_SCALE_M = np.array([0.27, 0.0, 0.08]), 0.1
"""Positions in the scene as the heads say them: of size one."""

NEAR_M = 0.045
"""A block so near to the tool, seen from above, is being dealt with."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B frames with S instructions each, E entities, A answer tokens. Patches are counted row by row; -1: not in the picture.

    patches: [B, E] which patch holds the middle of each entity. details: [B, E, 5] place inside that patch in -0.5 .. 0.5 (column,
    row), position in the scene. goals: [B, S] the patch of the block or plate that the instruction is about now.
    scene: [B, S, 6] position of the tool and of that goal. grip: [B, S, 3] 1 or 0: a block is held, the named one is, the tool is
    over the plate.
    """

    pixels: Tensor
    pack: Pack | None
    patches: Tensor
    details: Tensor
    goals: Tensor
    scene: Tensor
    grip: Tensor


class Batches:
    """Draws batches from a set of frames. The draw depends on the generator alone, so any step can be drawn again."""

    def __init__(self, frames: FrameSet, shape: ModelShape, focused: bool = False) -> None:
        """focused: frames and tasks of the grasp and of the plate are drawn much more often."""
        self.frames, self.truth, self.focused = frames, frames.truth, focused
        self.prompt, self.tokens = make_prompt_encoder(WORDS, shape), make_action_tokens(shape)
        self.processor, self.image_path = make_processor(shape), ImagePath()
        self.patch, self.across = shape.towers[0].patch, shape.towers[0].side // shape.towers[0].patch
        weights = focused_weights(self.truth) if focused else frame_weights(self.truth)
        self.until = np.cumsum(weights / weights.sum())

    def draw(self, random: np.random.Generator, count: int, instructions: int) -> Batch:
        """`count` frames with so many instructions each; 0 instructions give a batch for the picture's questions alone."""
        chosen = np.minimum(np.searchsorted(self.until, random.random(count)), len(self.frames) - 1)
        return self.make(chosen, random, instructions)

    def make(self, chosen: npt.NDArray[np.int64], random: np.random.Generator, instructions: int) -> Batch:
        """The batch of these frames."""
        pixels = np.stack([self.pixels(int(index)) for index in chosen])
        truth = self.truth
        positions_m, places = truth.positions_m[chosen].astype(np.float64), truth.places[chosen].astype(np.float64)
        cells = np.floor((places + 0.5) / self.patch)
        seen = np.asarray((np.isfinite(cells) & (cells >= 0) & (cells < self.across)).all(axis=-1, keepdims=True))
        cells = np.where(seen, cells, 0.0)
        patches = np.where(seen[..., 0], cells[..., 1] * self.across + cells[..., 0], -1).astype(np.int64)
        inside = (places + 0.5) / self.patch - cells - 0.5
        scaled = (positions_m - SCENE_CENTRE_M) / SCENE_SCALE_M
        details = np.where(seen, np.concatenate([inside, scaled], axis=-1), 0.0)
        pack, goals, named = self.ask(chosen, random, instructions) if instructions else (None, *np.zeros((2, len(chosen), 0), np.int64))
        held = truth.held[chosen][:, None]
        over_plate = np.broadcast_to(over_the_plate(truth)[chosen][:, None], named.shape)
        grip = np.stack([np.broadcast_to(held >= 0, named.shape), held == named, over_plate], axis=-1)
        goal_patches = np.take_along_axis(patches, goals, axis=1)
        goal = np.take_along_axis(scaled, goals[..., None], axis=1)
        tool = np.broadcast_to(scaled[:, -1:], goal.shape)
        return Batch(torch.from_numpy(pixels), pack, torch.from_numpy(patches), torch.from_numpy(details).float(),
                     torch.from_numpy(goal_patches), torch.from_numpy(np.concatenate([tool, goal], axis=-1)).float(),
                     torch.from_numpy(grip).float())

    def pixels(self, index: int) -> npt.NDArray[np.float32]:
        """[6, side, side] of a frame, exactly as the policy makes them from the camera's message."""
        observation = Observation(self.frames.picture(index), "-", stamp_ns=0)
        return self.processor.to_pixels(self.image_path.apply(observation, self.processor.side))

    def ask(self, chosen: npt.NDArray[np.int64], random: np.random.Generator, instructions: int
            ) -> tuple[Pack, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Instructions for each frame and the expert's answers; [B, S] the entity that each is about now, and the colour it names."""
        actions, held = self.truth.actions[chosen], self.truth.held[chosen]
        tasks = choose_tasks(self.truth, chosen, random, instructions, EAGER_FOCUSED if self.focused else EAGER)  # [B, S, 2]
        examples, goals = [], np.empty(tasks.shape[:2], np.int64)
        for row, frame_tasks in enumerate(tasks):
            examples.append([make_example(self.prompt, self.tokens, END_ID, phrase(random, kind, colour),
                                          normalize(actions[row, kind, colour])) for kind, colour in frame_tasks])
            goals[row] = [ENTITIES.index("plate") if KINDS[kind] == "place" and held[row] == colour else colour
                          for kind, colour in frame_tasks]
        return pack_examples(examples, STATISTICS.length), goals, tasks[..., 1]


def normalize(action: npt.NDArray[np.float32]) -> FloatArray:
    """dx, dy, dz [m] and gripper -> the seven numbers that the model says."""
    return STATISTICS.to_normalized(np.array([*action[:3], 0.0, 0.0, 0.0, action[3]], dtype=np.float64))


def phrase(random: np.random.Generator, kind: int, colour: int) -> str:
    """One of the ways to ask for a task."""
    templates = PHRASES[KINDS[kind]]
    return templates[int(random.integers(len(templates)))].format(colour=COLOURS[colour])


def near_blocks(truth: Truth) -> npt.NDArray[np.bool_]:
    """[N, colours] whether the tool is above or at the block."""
    apart_m = truth.positions_m[:, :len(COLOURS), :2] - truth.positions_m[:, -1:, :2]
    return np.asarray(np.linalg.norm(apart_m, axis=-1) < NEAR_M)  # NaN compares false


def over_the_plate(truth: Truth) -> npt.NDArray[np.bool_]:
    """[N] whether the tool is above the plate, seen from above."""
    apart_m = truth.positions_m[:, -1, :2] - truth.positions_m[:, ENTITIES.index("plate"), :2]
    return np.asarray(np.linalg.norm(apart_m, axis=-1) < PLATE_RADIUS_M)


def frame_weights(truth: Truth) -> FloatArray:
    """[N] how often a frame is drawn: where millimetres and the fingers decide, more often."""
    tool_m = truth.positions_m[:, -1]
    holding = truth.held >= 0
    low = near_blocks(truth).any(axis=1) & (tool_m[:, 2] < 0.09)
    moving_fingers = (truth.opening < 0.95) & ~holding
    weights: FloatArray = 1.0 + 0.7 * (low & ~holding) + 0.3 * holding + 0.8 * moving_fingers + 0.7 * (holding & over_the_plate(truth))
    return weights


def focused_weights(truth: Truth) -> FloatArray:
    """[N] the same for the end of training: just gripped, closing, over the plate, aligned with a block."""
    tool_m = truth.positions_m[:, -1]
    holding = truth.held >= 0
    low = near_blocks(truth).any(axis=1) & (tool_m[:, 2] < 0.1)
    closing = (truth.opening < 0.95) & ~holding & low
    over_plate = holding & over_the_plate(truth)
    weights: FloatArray = 1.0 + 3.0 * (holding & (tool_m[:, 2] < 0.075)) + 2.0 * closing + 3.0 * over_plate + 1.0 * (low & ~holding)
    return weights


EAGER, EAGER_FOCUSED = 0.6, 2.0
"""How much earlier pick and place come for a block that is held or near: 1 and more means always first."""


def choose_tasks(truth: Truth, chosen: npt.NDArray[np.int64], random: np.random.Generator, count: int, eagerness: float = EAGER
                 ) -> npt.NDArray[np.int64]:
    """[B, count, 2] kind and colour: of the present colours, those first that are held or near."""
    present = np.isfinite(truth.actions[chosen, :, :, 0])  # [B, kinds, colours]
    held = truth.held[chosen, None] == np.arange(len(COLOURS))
    eager = held | near_blocks(truth)[chosen]
    rank = random.random(present.shape) - eagerness * (eager[:, None] & np.array([kind != "reach" for kind in KINDS])[None, :, None])
    order = np.where(present, rank, np.inf).reshape(len(chosen), -1).argsort(axis=1)[:, :count]
    return np.stack(np.divmod(order, len(COLOURS)), axis=-1)
