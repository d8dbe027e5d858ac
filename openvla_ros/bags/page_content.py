"""What a page of results says, as plain data: whoever ran a policy fills it in, `page.py` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from openvla_ros.contract import ACTION_NAMES, FloatArray
from openvla_ros.robot import Camera


@dataclass(frozen=True)
class PageFrame:
    """One frame as the page shows it. Actions are [7] in the order of ACTION_NAMES, NaN where a number is not known; None without any.

    log_ns: when it was logged, to find its picture again in the recording.
    """

    index: int  # counts the image messages of its recording from 0
    stamp_ns: int
    log_ns: int
    instruction: str
    recorded: FloatArray | None = None  # what the recording says was done
    predicted: FloatArray | None = None  # what the policy says
    sent: FloatArray | None = None  # what the arm would have received, after the safety rules
    against: FloatArray | None = None  # what `PageRun.against` says: another checkpoint or mode, or golden actions
    fault: str = ""  # why there is no prediction
    rules: tuple[str, ...] = ()  # safety rules that changed or refused the step
    difference: str = ""  # what differs from what was expected, and why; empty: nothing, or nothing was expected
    margin: float | None = None  # smallest difference between the two best logits over the tokens of the action
    driver: str = ""  # HOLD, POLICY, HUMAN, STOPPED; empty: not known
    tool_m: FloatArray | None = None  # [3] where the end effector was, in the robot's base frame; None: the recording is asked
    stage_ms: Mapping[str, float] = field(default_factory=dict)  # in the order in which they ran; `total` is the whole call


@dataclass(frozen=True)
class Track:
    """One recording of a run. Pictures are read from `path` again, and only those that are shown."""

    name: str
    path: Path
    image_topic: str
    frames: Sequence[PageFrame]
    action_topic: str = ""
    camera: Camera | None = None  # from the robot's profile; None: motions are drawn beside the picture's content, not into it
    rotate_180: bool = False  # the policy saw the pictures turned, so people do too


@dataclass(frozen=True)
class PageRun:
    """All that one page says."""

    title: str
    policy: str
    tracks: Sequence[Track]
    against: str = ""  # name of what PageFrame.against holds
    passed: bool | None = None  # None: nothing was asserted
    facts: Mapping[str, str] = field(default_factory=dict)  # rows of the summary, as they are to be shown: hashes, versions, options
    notes: Sequence[str] = ()  # what a reader must know: quantised, untrained
    failed: Mapping[str, str] = field(default_factory=dict)  # recordings that could not be run -> why


def action_table(frames: Sequence[PageFrame], name: str) -> FloatArray:
    """[n, 7] one of the actions of each frame, NaN where it has none."""
    nothing = np.full(len(ACTION_NAMES), np.nan)
    rows = [nothing if (action := getattr(frame, name)) is None else action for frame in frames]
    return np.array(rows, np.float64).reshape(-1, len(ACTION_NAMES))


def distances(one: FloatArray, other: FloatArray) -> FloatArray:
    """[n, 7] and [n, 7] actions -> [n, 3] how far apart: translation [m], rotation [rad], gripper. NaN where one does not say."""
    gap = one - other
    return np.stack([np.linalg.norm(gap[:, :3], axis=1), np.linalg.norm(gap[:, 3:6], axis=1), np.abs(gap[:, 6])], axis=1)
