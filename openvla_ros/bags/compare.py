"""Two policies' answers to the same frames in: how often they agree, how far apart they are in SI units, and where most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.bags.replay import DimensionError, ReplayedFrame, dimension_errors
from openvla_ros.contract import ACTION_NAMES, FloatArray

WORST = 10

SCALES: FloatArray = np.array([0.01, 0.01, 0.01, 0.05, 0.05, 0.05, 0.5])
"""What counts as equally bad in each dimension, to rank frames: 1 cm, 0.05 rad (3 degrees), half a gripper."""


@dataclass(frozen=True)
class WorstFrame:
    """A frame on which two policies are far apart. apart: [7] the other one's action minus the base's."""

    index: int
    score: float  # largest |apart| over the dimensions, in units of SCALES
    dimension: str  # in which it is largest
    base: FloatArray
    other: FloatArray
    apart: FloatArray


@dataclass(frozen=True)
class Comparison:
    """Two policies over the same frames. base: the first one; the other is compared with it.

    agreement: per dimension, the share of frames on which both chose the same token; None for policies without tokens.
    errors: the other's action minus the base's, per dimension in its own unit (as DimensionError: `recorded` is the base).
    """

    base: str
    other: str
    frames: int  # that both answered with an action
    same_ids: float | None  # share of frames with all ids equal
    agreement: tuple[float, ...] | None
    errors: tuple[DimensionError, ...]
    only_one: tuple[int, ...]  # frames that only one of them answered with an action
    worst: tuple[WorstFrame, ...]


def compare(base_name: str, base: Sequence[ReplayedFrame], other_name: str, other: Sequence[ReplayedFrame],
            worst: int = WORST) -> Comparison:
    """Compare frame by frame, by index. Frames that only one of them has are left out of all numbers."""
    answers = {frame.index: frame for frame in other}
    pairs = [(frame, answers[frame.index]) for frame in base if frame.index in answers]
    both = [(one, two) for one, two in pairs if one.action is not None and two.action is not None]
    tokens = [(one.token_ids, two.token_ids) for one, two in both if len(one.token_ids) == len(two.token_ids) == len(ACTION_NAMES)]
    equal = np.array([[left == right for left, right in zip(one, two, strict=True)] for one, two in tokens]) if tokens else None
    as_errors = [ReplayedFrame(one.index, one.stamp_ns, one.instruction, (), two.action, one.action, "", {}) for one, two in both]
    return Comparison(
        base_name, other_name, len(both),
        None if equal is None else float(equal.all(axis=1).mean()),
        None if equal is None else tuple(float(share) for share in equal.mean(axis=0)),
        dimension_errors(as_errors),
        tuple(one.index for one, two in pairs if (one.action is None) != (two.action is None)),
        tuple(sorted((_rank(one, two) for one, two in both), key=lambda frame: (-frame.score, frame.index))[:worst]))


def _rank(one: ReplayedFrame, two: ReplayedFrame) -> WorstFrame:
    assert one.action is not None and two.action is not None
    apart = two.action - one.action
    scaled = np.abs(apart) / SCALES
    column = int(np.argmax(scaled))
    return WorstFrame(one.index, float(scaled[column]), ACTION_NAMES[column], one.action, two.action, apart)
