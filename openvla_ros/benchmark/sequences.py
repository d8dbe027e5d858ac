"""Where the id sequences for `acceptance` come from: the simulation with a policy in charge, and recordings.

Comes in: a loaded policy, and layouts or a bag; goes out: one array of action ids [steps, D] per episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openvla_ros.bags.frames import Frame, frames, select
from openvla_ros.bags.read import SECOND_NS, Recording
from openvla_ros.benchmark.acceptance import Acceptance, IdArray, acceptance
from openvla_ros.contract import ActionChunk, Observation
from openvla_ros.policy.catalogue import DEFAULT, read_profile
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.policy.openvla.policy import OpenvlaPolicy, Prediction
from openvla_ros.policy.openvla.tokens import ActionTokens
from openvla_ros.policy.statistics import ActionStatistics, check_statistics
from openvla_ros.robot import Limits

SAME_EPISODE_NS = SECOND_NS // 2
"""Frames further apart than this belong to different episodes: the previous action is then no neighbour."""


KINDS = ("reach", "pick", "place")
"""Tasks of the simulation."""

FIRST_SEED = 1000
"""Layouts of the evaluation: neither training nor its supervision saw them."""


def all_acceptances(checkpoint: str, unnorm_key: str, bags: Sequence[Path], episodes: int,
                    progress: Callable[[str, int, int], None] = lambda text, done, total: None) -> list[Acceptance]:
    """The shipped policy in closed loop; for each bag its recorded actions and, with a checkpoint, what that one answers to its frames.

    progress: called with (what, done, in all). Raises OpenvlaRosError.
    """
    from openvla_ros.ros.profile import read_robot

    policy, limits, found = load_openvla(read_profile(DEFAULT)), read_robot("wx250s_sim").limits, list[Acceptance | None]()
    for kind in KINDS:
        seeds = range(FIRST_SEED, FIRST_SEED + episodes)
        driven = closed_loop(policy, limits, kind, seeds, partial(progress, f"{kind} in the simulation"))
        found.append(acceptance(f"shipped policy, {kind} ({driven.successes} of {episodes} done)", driven.ids, measured=driven.passes))
    policy.close()
    if not bags:
        return [one for one in found if one is not None]
    other = load_openvla(read_profile("openvla-7b", checkpoint=checkpoint, unnorm_key=unnorm_key)) if checkpoint else None
    tokens, statistics = bridge_coding() if other is None else (other.tokens, other.statistics)
    for number, bag in enumerate(bags):
        progress(bag.name, number, len(bags))
        found.append(acceptance(f"{bag.name}, recorded actions", demonstrated_ids(bag, tokens, statistics)))
        if other is not None:
            notes = "".join(f" ({note.partition(':')[0]})" for note in other.notes)
            found.append(acceptance(f"{bag.name}, {other.name}{notes}", recorded_ids(other, bag)))
    return [one for one in found if one is not None]


def bridge_coding() -> tuple[ActionTokens, ActionStatistics]:
    """How openvla-7b says BridgeData's actions: its published bins and quantiles."""
    q01 = [-0.02872725, -0.04170350, -0.02609386, -0.08092105, -0.09288700, -0.20718276, 0.0]
    q99 = [0.02830968, 0.04085525, 0.04016159, 0.08192048, 0.07792850, 0.20382575, 1.0]
    return ActionTokens(32000), check_statistics("bridge_orig", {"action": {"q01": q01, "q99": q99, "mask": [True] * 6 + [False]}})


class Driven(NamedTuple):
    """A policy in closed loop. ids: per episode; passes: of the decoder, for every step behind an episode's first; successes: episodes."""

    ids: list[IdArray]
    passes: list[int]
    successes: int


def closed_loop(policy: OpenvlaPolicy, limits: Limits, kind: str, seeds: Sequence[int],
                progress: Callable[[int, int], None] = lambda done, total: None) -> Driven:
    """The policy does a task in the simulation, with drafts. limits: of the robot's profile. progress: (episodes done, in all)."""
    from openvla_ros.simulation.evaluate import evaluate  # late: MuJoCo takes a moment

    episodes, passes, successes = list[IdArray](), list[int](), 0
    policy.draft = True
    for done, seed in enumerate(seeds, start=1):
        seen: list[Prediction] = []
        policy.forget()

        def act(observations: Sequence[Observation], seen: list[Prediction] = seen) -> list[ActionChunk]:
            seen.append(policy.predict(observations[0]))
            return [policy.to_chunk(observations[0], seen[-1])]

        successes += evaluate(act, limits, [kind], [seed], batch=1)[kind].successes
        episodes += [to_array([each.generated_ids for each in seen])] if seen else []
        passes += [each.passes for each in seen[1:]]
        progress(done, len(seeds))
    return Driven(episodes, passes, successes)


def recorded_ids(policy: OpenvlaPolicy, bag: Path) -> list[IdArray]:
    """What the policy answers to consecutive frames of a recording. Raises BagError."""
    def answers() -> Iterator[tuple[Frame, tuple[int, ...]]]:
        for frame in decoded_frames(bag):
            if frame.rgb is not None:
                yield frame, policy.predict(Observation(frame.rgb, frame.instruction, frame.stamp_ns, frame.jpeg)).generated_ids

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
