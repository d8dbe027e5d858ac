"""A recording and a policy in, what the policy would have done out: frame by frame, offline, the same every time.

The policy sees every frame in order, however long it takes; nothing is dropped and no clock is read except to measure.
Pictures pass through, a few at a time; what is kept of a frame is about a kilobyte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from openvla_ros.bags.frames import Frame, Marks, Selection, Tally, frames
from openvla_ros.bags.read import Recording
from openvla_ros.contract import ACTION_NAMES, ActionChunk, Evidence, FloatArray, Observation, Policy
from openvla_ros.errors import BagError

PREPARERS = 2
"""Threads in which a policy prepares the next frames."""

ACTION_UNITS = ("m", "m", "m", "rad", "rad", "rad", "0..1")
"""Unit of each number of an action; the gripper is a share, 0 closed .. 1 open."""


@dataclass(frozen=True)
class ReplayedFrame:
    """One frame and the policy's first step for it. action is None exactly where `fault` says why."""

    index: int
    stamp_ns: int
    instruction: str
    token_ids: tuple[int, ...]
    action: FloatArray | None  # [7] in the order of ACTION_NAMES
    recorded: FloatArray | None  # [7], NaN where the recording does not say
    fault: str
    stage_ms: Mapping[str, float]
    marks: Marks | None = None  # of the frame, where asked for
    evidence: Evidence | None = None  # where the policy gives it
    log_ns: int = 0  # when it was recorded
    steps: int = 1  # how many the chunk has; `action` is the first


@runtime_checkable
class BatchPolicy(Protocol):
    """A policy that can look at several frames at once."""

    def act_batch(self, observations: Sequence[Observation]) -> Sequence[ActionChunk]:
        """What `act` answers to each, but for rounding."""


@runtime_checkable
class PreparingPolicy(Protocol):
    """A policy that does part of its work on a frame in other threads, while it looks at earlier ones. It may give evidence."""

    def prepare(self, observation: Observation) -> Any:
        """That part. Called from several threads at once."""

    def act_prepared(self, observations: Sequence[Observation], prepared: Sequence[Any]) -> Sequence[tuple[ActionChunk, Evidence | None]]:
        """What `act` answers to each but for rounding, and how it came about."""


@dataclass(frozen=True)
class DimensionError:
    """Predicted minus recorded in one dimension, in its own unit. None where it cannot be said (no pair, no variation)."""

    name: str
    unit: str
    pairs: int
    mean_abs: float | None
    median_abs: float | None
    p95_abs: float | None
    max_abs: float | None
    bias: float | None
    correlation: float | None


@dataclass(frozen=True)
class Replay:
    """One policy over one recording."""

    recording: str
    policy: str
    notes: tuple[str, ...]
    image_topic: str
    instruction_topic: str  # empty when the instruction was given
    action_topic: str  # empty when the recording has no actions
    frames: tuple[ReplayedFrame, ...]
    tally: Tally

    @property
    def errors(self) -> tuple[DimensionError, ...]:
        """Statistics per dimension, in the order of ACTION_NAMES."""
        return dimension_errors(self.frames)

    @property
    def digest(self) -> str:
        """SHA-256 over indices, token ids, actions and faults: equal for two runs that would have moved the arm equally."""
        content = hashlib.sha256()
        for frame in self.frames:
            action = b"" if frame.action is None else np.asarray(frame.action, "<f8").tobytes()
            content.update(repr((frame.index, frame.token_ids, frame.fault)).encode() + action)
        return content.hexdigest()


def replay(recording: Recording, selection: Selection, policy: Policy, stride: int = 1, limit: int = 0,
           on_frame: Callable[[ReplayedFrame], None] | None = None, batch: int = 1, marks: bool = False) -> Replay:
    """Show the frames of a recording to a policy.

    batch: so many frames at once, for a policy that can; the others see one after the other. marks: keep the frames' digests.
    on_frame: called after each frame, for a progress bar. Raises BagError when no frame could be shown at all, and what the
    policy raises.
    """
    tally = Tally()
    seen: list[ReplayedFrame] = []
    for answer in run(policy, frames(recording, selection, tally, stride, limit, ahead=max(8, 2 * batch), marks=marks), batch):
        seen.append(answer)
        if on_frame:
            on_frame(answer)
    if not seen:
        raise BagError(f"no frame of {recording.path} could be shown to the policy: {tally.images} images, "
                       f"{tally.without_instruction} of them before an instruction. Give one with --instruction.")
    return Replay(recording.name, policy.name, (*policy.notes, *recording.notes, *tally.notes), selection.image.name,
                  selection.instruction.name if selection.instruction else "",
                  selection.action.name if selection.action else "", tuple(seen), tally)


def run(policy: Policy, shown: Iterator[Frame], batch: int = 1) -> Iterator[ReplayedFrame]:
    """The policy's answer to each frame; a frame whose picture is broken is answered by its fault."""
    with ThreadPoolExecutor(PREPARERS, "prepare") as pool:
        coming = _next_batch(policy, shown, batch, pool)
        while coming.frames:
            now, coming = coming, _next_batch(policy, shown, batch, pool)
            begun_ns = perf_counter_ns()
            answers = iter(ask(policy, now) if now.observations else ())
            share_ms = (perf_counter_ns() - begun_ns) / 1e6 / max(1, len(now.observations))
            for frame in now.frames:
                yield _unanswered(frame) if frame.rgb is None else _answered(frame, *next(answers), share_ms)


class _Batch(NamedTuple):
    """Some frames, and the observations in them that have a picture."""

    frames: list[Frame]
    observations: list[Observation]
    prepared: list[Future[Any]]  # one for each observation, where the policy prepares


def _next_batch(policy: Policy, shown: Iterator[Frame], batch: int, pool: ThreadPoolExecutor) -> _Batch:
    some = list(islice(shown, batch))
    asked = [Observation(frame.rgb, frame.instruction, frame.stamp_ns, frame.jpeg) for frame in some if frame.rgb is not None]
    prepares = isinstance(policy, PreparingPolicy)
    return _Batch(some, asked, [pool.submit(policy.prepare, observation) for observation in asked] if prepares else [])  # type: ignore[attr-defined]


def ask(policy: Policy, batch: _Batch) -> Sequence[tuple[ActionChunk, Evidence | None]]:
    """The answers to the observations of a batch, in order, together where the policy can."""
    if isinstance(policy, PreparingPolicy):
        return policy.act_prepared(batch.observations, [future.result() for future in batch.prepared])
    if len(batch.observations) > 1 and isinstance(policy, BatchPolicy):
        return [(chunk, None) for chunk in policy.act_batch(batch.observations)]
    return [(policy.act(observation), None) for observation in batch.observations]


def _unanswered(frame: Frame) -> ReplayedFrame:
    return ReplayedFrame(frame.index, frame.stamp_ns, frame.instruction, (), None, frame.recorded, frame.fault, {}, frame.marks,
                         log_ns=frame.log_ns)


def _answered(frame: Frame, chunk: ActionChunk, evidence: Evidence | None, share_ms: float) -> ReplayedFrame:
    """total: the frame's share of the time for its batch, which is what counts for a long recording."""
    action = chunk.steps[0].to_vector() if chunk.steps else None
    fault = chunk.fault or ("" if chunk.steps else "the policy answered without a step")
    return ReplayedFrame(frame.index, frame.stamp_ns, frame.instruction, tuple(chunk.token_ids), action, frame.recorded, fault,
                         {**chunk.stage_ms, "total": share_ms}, frame.marks, evidence, frame.log_ns, len(chunk.steps))


def dimension_errors(seen: Sequence[ReplayedFrame]) -> tuple[DimensionError, ...]:
    """Statistics of predicted minus recorded, over the frames that have both."""
    pairs = [(frame.action, frame.recorded) for frame in seen if frame.action is not None and frame.recorded is not None]
    predicted = np.array([action for action, _ in pairs]).reshape(-1, len(ACTION_NAMES))
    recorded = np.array([action for _, action in pairs]).reshape(-1, len(ACTION_NAMES))
    return action_errors(predicted, recorded)


def action_errors(predicted: FloatArray, recorded: FloatArray) -> tuple[DimensionError, ...]:
    """Statistics of the one minus the other, both [n, 7], over the pairs of finite numbers of each dimension."""
    return tuple(_errors(name, unit, predicted[:, column], recorded[:, column])
                 for column, (name, unit) in enumerate(zip(ACTION_NAMES, ACTION_UNITS, strict=True)))


def _errors(name: str, unit: str, predicted: FloatArray, recorded: FloatArray) -> DimensionError:
    known = np.isfinite(predicted) & np.isfinite(recorded)
    predicted, recorded = predicted[known], recorded[known]
    if not predicted.size:
        return DimensionError(name, unit, 0, None, None, None, None, None, None)
    error = predicted - recorded
    size = np.abs(error)
    varies = predicted.size > 1 and np.ptp(predicted) > 0 and np.ptp(recorded) > 0
    return DimensionError(
        name, unit, int(predicted.size), float(size.mean()), float(np.median(size)), float(np.quantile(size, 0.95)),
        float(size.max()), float(error.mean()), float(np.corrcoef(predicted, recorded)[0, 1]) if varies else None)
