"""The same recordings through two policies: another checkpoint, dtype, quantisation or image path against the one in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.bags.compare import Comparison, WorstFrame, compare
from openvla_ros.bags.exhibit import Exhibit, write_exhibit
from openvla_ros.bags.frames import pick, select
from openvla_ros.bags.read import Recording
from openvla_ros.bags.replay import ReplayedFrame
from openvla_ros.contract import ACTION_NAMES
from openvla_ros.errors import ConfigurationError
from openvla_ros.policy.catalogue import PYTHON_TYPES, PolicySettings
from openvla_ros.policy.statistics import only_key
from openvla_ros.regression.job import FAILED, Job, Result

WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Match:
    """One recording, compared; or why it could not be."""

    job: Job
    comparison: Comparison | None
    error: str = ""


def other_settings(base: PolicySettings, text: str) -> PolicySettings:
    """The settings that `--against` names: a checkpoint, or changes such as "dtype=float32,quantization=nf4".

    Another checkpoint keeps the other settings, and its own statistics key where it has only one. Raises ConfigurationError.
    """
    if "=" not in text:
        return replace(base, checkpoint=text, unnorm_key=only_key(text) or base.unnorm_key)
    kinds = {field.name: str(field.type) for field in fields(PolicySettings)}
    changes: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in kinds:
            raise ConfigurationError(f"--against names the setting {name!r}; there are {', '.join(kinds)}.")
        try:
            changes[name] = WORDS[value] if kinds[name] == "bool" else PYTHON_TYPES[kinds[name]][-1](value)
        except (KeyError, ValueError) as error:
            raise ConfigurationError(f"--against sets {name} to {value!r}, expected a value of type {kinds[name]}.") from error
    other = replace(base, **changes)
    if other == base:
        raise ConfigurationError(f"--against {text} changes nothing: the policy is so already.")
    return other


def in_pairs(jobs: Sequence[Job], other: PolicySettings) -> list[Job]:
    """The work: each recording with both policies."""
    plain = [replace(job, expect=None, write_expected=None, report=False) for job in jobs]
    return [*plain, *(replace(job, name=f"{job.name} against", policy=other) for job in plain)]


def match(jobs: Sequence[Job], results: Sequence[Result], other_policy: PolicySettings) -> list[Match]:
    """The results of `in_pairs`, recording by recording; pictures of the worst frames go to each job's output."""
    matches = []
    for job, base, other in zip(jobs, results[:len(jobs)], results[len(jobs):], strict=True):
        failed = [result for result in (base, other) if result.status == FAILED]
        if failed or base.replay is None or other.replay is None:
            matches.append(Match(job, None, " ".join(dict.fromkeys(result.error for result in failed))))
            continue
        comparison = compare(base.replay.policy, base.replay.frames, title(job.policy, other_policy, other.replay.policy),
                             other.replay.frames)
        _show_worst(job, comparison)
        matches.append(Match(job, comparison))
    return matches


def together(jobs: Sequence[Job], results: Sequence[Result], other_policy: PolicySettings) -> Comparison | None:
    """All recordings as one, without worst frames; None when nothing could be compared."""
    one, other = list[ReplayedFrame](), list[ReplayedFrame]()
    names = ("", "")
    for place in range(len(jobs)):
        base, against = results[place], results[place + len(jobs)]
        if base.replay is not None and against.replay is not None:
            names = (base.replay.policy, title(jobs[place].policy, other_policy, against.replay.policy))
            answers = {frame.index: frame for frame in against.replay.frames}
            for frame in base.replay.frames:
                if frame.index in answers:
                    one.append(replace(frame, index=len(one)))
                    other.append(replace(answers[frame.index], index=len(other)))
    return compare(names[0], one, names[1], other, worst=0) if one else None


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON values."""
    return {
        "base": comparison.base, "other": comparison.other, "frames": comparison.frames, "same_ids": comparison.same_ids,
        "agreement": None if comparison.agreement is None else dict(zip(ACTION_NAMES, comparison.agreement, strict=True)),
        "errors": [asdict(error) for error in comparison.errors], "answered_by_one_only": list(comparison.only_one),
        "worst": [{"frame": frame.index, "score": frame.score, "dimension": frame.dimension, "base": frame.base.tolist(),
                   "other": frame.other.tolist()} for frame in comparison.worst]}


def title(base: PolicySettings, other: PolicySettings, name: str) -> str:
    """A policy's name, with the settings that set it apart where the checkpoint does not."""
    changed = [f"{field.name}={getattr(other, field.name)}" for field in fields(PolicySettings)
               if getattr(base, field.name) != getattr(other, field.name)]
    return name if base.checkpoint != other.checkpoint else f"{name}, {', '.join(changed)}"


def _show_worst(job: Job, comparison: Comparison) -> None:
    worst = {frame.index: frame for frame in comparison.worst if frame.score > 0.0}
    if not worst:
        return
    with Recording(job.bag) as recording:
        selection = select(recording, job.image_topic, job.instruction, job.instruction_topic, job.action_topic)
        for frame in pick(recording, selection, worst):
            write_exhibit(frame.rgb, _exhibit(worst[frame.index], comparison), _place(job.output, frame.index))


def _exhibit(frame: WorstFrame, comparison: Comparison) -> Exhibit:
    column = ACTION_NAMES.index(frame.dimension)
    return Exhibit(f"frame {frame.index}: furthest apart in {frame.dimension}",
                   f"base is {comparison.base}, against it {comparison.other}: {np.abs(frame.apart[column]):.5f} apart.",
                   (("base", frame.base), ("against", frame.other)), (frame.dimension,))


def _place(folder: Path, index: int) -> Path:
    return folder / f"worst_{index:06d}.png"
