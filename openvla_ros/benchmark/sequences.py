"""Where the id sequences for `acceptance` come from: the simulation with a policy in charge, and recordings.

Comes in: a loaded policy, and layouts or a bag; goes out: one array of action ids [steps, D] per episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from openvla_ros.bags.frames import Frame, frames, select
from openvla_ros.bags.read import SECOND_NS, Recording
from openvla_ros.benchmark.acceptance import IdArray
from openvla_ros.contract import ActionChunk, Observation
from openvla_ros.policy.openvla.tokens import ActionTokens
from openvla_ros.policy.statistics import ActionStatistics
from openvla_ros.robot import Limits

SAME_EPISODE_NS = SECOND_NS // 2
"""Frames further apart than this belong to different episodes: the previous action is then no neighbour."""


class Predicting(Protocol):
    """A policy that gives token ids."""

    def act(self, observation: Observation) -> ActionChunk:
        """One chunk with its `token_ids`."""


def closed_loop_ids(policy: Predicting, limits: Limits, kind: str, seeds: Sequence[int],
                    progress: Callable[[], None] = lambda: None) -> tuple[list[IdArray], int]:
    """The policy does a task in the simulation: (ids per episode, episodes in which it was done). limits: of the robot's profile."""
    from openvla_ros.simulation.evaluate import evaluate  # late: MuJoCo takes a moment

    episodes, successes = list[IdArray](), 0
    for seed in seeds:
        seen: list[tuple[int, ...]] = []

        def act(observations: Sequence[Observation], seen: list[tuple[int, ...]] = seen) -> list[ActionChunk]:
            chunks = [policy.act(observation) for observation in observations]
            seen.extend(tuple(chunk.token_ids) for chunk in chunks)
            return chunks

        successes += evaluate(act, limits, [kind], [seed], batch=1)[kind].successes
        episodes += [to_array(seen)] if seen else []
        progress()
    return episodes, successes


def recorded_ids(policy: Predicting, bag: Path, progress: Callable[[], None] = lambda: None) -> list[IdArray]:
    """What the policy answers to consecutive frames of a recording. Raises BagError."""
    def answers() -> Iterator[tuple[Frame, tuple[int, ...]]]:
        for frame in decoded_frames(bag):
            if frame.rgb is not None:
                yield frame, tuple(policy.act(Observation(frame.rgb, frame.instruction, frame.stamp_ns, frame.jpeg)).token_ids)
                progress()

    return split_episodes(answers())


def demonstrated_ids(bag: Path, tokens: ActionTokens, statistics: ActionStatistics) -> list[IdArray]:
    """The recorded actions of a bag as the ids that a policy is trained to say. Raises BagError."""
    def labels() -> Iterator[tuple[Frame, tuple[int, ...]]]:
        for frame in decoded_frames(bag):
            if frame.recorded is not None and np.isfinite(frame.recorded).all():
                yield frame, tuple(map(int, tokens.encode(statistics.to_normalized(frame.recorded))))

    return split_episodes(labels())


def decoded_frames(bag: Path) -> Iterator[Frame]:
    """The frames of a recording, each with its instruction."""
    with Recording(bag) as recording:
        yield from frames(recording, select(recording))


def split_episodes(answers: Iterable[tuple[Frame, tuple[int, ...]]]) -> list[IdArray]:
    """Ids cut where the instruction changes or time jumps."""
    episodes: list[list[tuple[int, ...]]] = []
    before: Frame | None = None
    for frame, ids in answers:
        if before is None or frame.instruction != before.instruction or not 0 < frame.stamp_ns - before.stamp_ns <= SAME_EPISODE_NS:
            episodes.append([])
        episodes[-1].append(ids)
        before = frame
    return [to_array(episode) for episode in episodes]


def to_array(ids: Sequence[tuple[int, ...]]) -> IdArray:
    """[steps, D]; the steps before the first whose answer had another length than the first one's."""
    whole = next((index for index, row in enumerate(ids) if len(row) != len(ids[0])), len(ids))
    return np.array(ids[:whole], dtype=np.int64)
