"""One recording as a unit of work: replayed, judged, its report and the pictures of its failures written. Picklable, both ways.

Status of a result: `good`; `differs` from what was expected; `failed`, which says that nothing could be judged, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from openvla_ros.bags.command import LATENCY_S, CommandRun, command
from openvla_ros.bags.exhibit import of_difference, write_exhibit
from openvla_ros.bags.expect import (
    CAUSES,
    Difference,
    Examiner,
    Expectation,
    Tolerance,
    compare_commanded,
    read_expectation,
    write_expectation,
)
from openvla_ros.bags.frames import Selection, pick, select
from openvla_ros.bags.read import Recording
from openvla_ros.bags.replay import Replay, ReplayedFrame, replay
from openvla_ros.bags.report import as_plain, write_report
from openvla_ros.contract import Policy
from openvla_ros.errors import ConfigurationError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.regression import provenance
from openvla_ros.regression.robots import ReplayRobot, read_robot

REPLAY_ROBOT = "wx250s_replay"
"""The robot without hardware that a recording is played to, unless another is named."""

EXHIBITS = 20
"""At most so many failing frames of a recording get a picture; all of them are in the report."""

GOOD, DIFFERS, FAILED = "good", "differs", "failed"


@dataclass(frozen=True)
class Job:
    """What is to be done with one recording. Paths are as this process sees them; names and topics as in the recording.

    output: folder for pictures of failures, and with `report` for the report. through: "policy", or "command" for the pilot too.
    stride, limit: 1 and 0 take those of the expectation, where there is one.
    """

    name: str
    bag: Path
    policy: PolicySettings
    output: Path
    image_topic: str = ""
    instruction: str = ""
    instruction_topic: str = ""
    action_topic: str = ""
    stride: int = 1
    limit: int = 0
    batch: int = 1
    expect: Path | None = None
    write_expected: Path | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    through: str = "policy"
    robot: str = REPLAY_ROBOT
    latency_s: float = LATENCY_S
    report: bool = True

    def __post_init__(self) -> None:
        if self.through not in ("policy", "command"):
            raise ConfigurationError(f"through is {self.through!r}, expected 'policy' or 'command'.")
        if self.stride < 1 or self.limit < 0 or self.batch < 1:
            raise ConfigurationError(f"stride {self.stride} and batch {self.batch} must be at least 1, limit {self.limit} at least 0.")
        if not 0.0 <= self.latency_s <= 10.0:
            raise ConfigurationError(f"latency_s is {self.latency_s}, expected 0 to 10 seconds.")


@dataclass(frozen=True)
class Result:
    """What came of a job. The answers of the policy are in `replay`; empty fields are things that were not asked for."""

    name: str
    status: str
    error: str = ""  # why it failed
    replay: Replay | None = None
    commanded: CommandRun | None = None
    differences: tuple[Difference, ...] = ()
    flips: tuple[int, ...] = ()  # frames whose ids flipped below the margin bound
    changes: tuple[str, ...] = ()  # what is not as it was when the expectation was made
    margin_bound: float | None = None  # None: nothing was expected
    files: Mapping[str, str] = field(default_factory=dict)  # what was written: report, picture, expected
    exhibits: Mapping[int, str] = field(default_factory=dict)  # frame -> picture of its failure
    seconds: float = 0.0


def check(job: Job) -> None:
    """Find what is wrong with the input before a model is loaded, which may take minutes. Raises OpenvlaRosError."""
    if job.expect is not None:
        read_expectation(job.expect)
    if job.through == "command":
        read_robot(job.robot)
    with Recording(job.bag) as recording:
        select(recording, job.image_topic, job.instruction, job.instruction_topic, job.action_topic)


def run_job(job: Job, policy: Policy, on_frame: Callable[[ReplayedFrame], None] | None = None) -> Result:
    """Do it. policy: loaded from `job.policy`; it is not closed. Raises OpenvlaRosError where nothing can be judged."""
    begun_s = perf_counter()
    expectation = None if job.expect is None else read_expectation(job.expect)
    if expectation is not None:
        job = _with_its_frames(job, expectation)
    robot = read_robot(job.robot) if job.through == "command" else None
    judged = job.expect is not None or job.write_expected is not None
    witness = preparing(policy, judged)
    with Recording(job.bag) as recording:
        selection = select(recording, job.image_topic, job.instruction, job.instruction_topic, job.action_topic)
        found = replay(recording, selection, witness, job.stride, job.limit, on_frame, job.batch, marks=judged)
        run = None if robot is None else command(recording, found.frames, robot.profile, robot.kinematics, job.latency_s,
                                                 step_s=policy.step_s)
        result = Result(job.name, GOOD, replay=found, commanded=run)
        if judged:
            made_with = collect(job, witness, found, robot)
            if job.write_expected is not None:
                write_expectation(Expectation(found.frames, made_with, run.frames if run else {}), job.write_expected)
                result = replace(result, files={"expected": str(job.write_expected)})
            if expectation is not None:
                result = judge(result, expectation, made_with, job.tolerance)
        result = replace(result, exhibits=exhibit(result.differences, recording, selection, job.output))
    if job.report:
        report, picture = write_report(found, job.output)
        result = replace(result, files={**result.files, "report": str(report), "picture": str(picture)})
    return replace(result, seconds=perf_counter() - begun_s)


def judge(result: Result, expectation: Expectation, made_with: Mapping[str, Any], tolerance: Tolerance) -> Result:
    """The result, with everything that is not as expected."""
    assert result.replay is not None
    if result.commanded is not None and not expectation.commanded:
        raise ConfigurationError("the expectation says nothing about the arm. Make it again with --through command --write-expected, or "
                                 "replay without --through command.")
    examiner = Examiner(expectation, made_with, tolerance)
    differences = [difference for frame in result.replay.frames if (difference := examiner.look(frame)) is not None]
    differences += examiner.finish()
    if result.commanded is not None:
        differences += compare_commanded(expectation, result.replay.frames, result.commanded.frames, differences, examiner.flips, tolerance)
    differences.sort(key=lambda difference: difference.index)
    return replace(result, status=DIFFERS if differences else GOOD, differences=tuple(differences), flips=tuple(examiner.flips),
                   changes=examiner.changes(), margin_bound=examiner.margin_bound)


def collect(job: Job, policy: Policy, found: Replay, robot: ReplayRobot | None) -> dict[str, Any]:
    """What the run was made with."""
    made_with = {**provenance.of_policy(job.policy, policy), **provenance.of_recording(found, job.stride, job.limit)}
    if robot is not None:
        made_with["command"] = {"robot": robot.profile.name, "limits": asdict(robot.profile.limits), "latency_s": job.latency_s}
    plain: dict[str, Any] = provenance.as_plain(made_with)
    return plain


def preparing(policy: Policy, evidence: bool) -> Policy:
    """The same policy, working on the next frames while the model runs, and with evidence where its kind can give it."""
    if not hasattr(policy, "predict_batch"):
        return policy
    from openvla_ros.policy.openvla.evidence import OpenvlaWitness  # late: torch

    return OpenvlaWitness(policy, evidence)  # type: ignore[arg-type]


def exhibit(differences: Sequence[Difference], recording: Recording, selection: Selection, folder: Path) -> dict[int, str]:
    """Write the pictures of the first failing frames: frame -> file."""
    first = {difference.index: difference for difference in reversed(differences)}
    chosen = {index: first[index] for index in sorted(first)[:EXHIBITS]}
    rgb = {frame.index: frame.rgb for frame in pick(recording, selection, chosen)} if chosen else {}
    files = {index: folder / f"frame_{index:06d}.png" for index in chosen}
    for index, difference in chosen.items():
        write_exhibit(rgb.get(index), of_difference(difference), files[index])
    return {index: str(file) for index, file in files.items()}


def as_words(result: Result) -> str:
    """A result that is not good, for a terminal, a test's failure text and JUnit."""
    if result.status == FAILED:
        return result.error
    causes = dict.fromkeys(difference.cause for difference in result.differences)
    wrong = {difference.index for difference in result.differences}
    shown = {frame.index for frame in result.replay.frames} if result.replay else set[int]()
    lines = [f"{len(wrong)} of {len(wrong | shown)} frames are not as expected. "
             f"What differs: {', '.join(f'{cause} ({CAUSES[cause]})' for cause in causes)}."]
    lines += [f"  frame {difference.index}: {difference.cause}: {difference.detail}" for difference in result.differences[:8]]
    if len(result.differences) > 8:
        lines.append(f"  and {len(result.differences) - 8} more")
    if result.changes:
        lines.append("Not as it was when the expectation was made:")
        lines += [f"  {change}" for change in result.changes]
    if result.exhibits:
        lines.append(f"Pictures: {', '.join(list(result.exhibits.values())[:3])}{' ...' if len(result.exhibits) > 3 else ''}")
    return "\n".join(lines)


def as_json(result: Result) -> dict[str, Any]:
    """A result as JSON values, without the frames; those are in its report."""
    plain: dict[str, Any] = {"name": result.name, "status": result.status, "seconds": round(result.seconds, 3), **result.files}
    if result.error:
        plain["error"] = result.error
    if result.replay is not None:
        plain |= as_plain(result.replay, with_frames=False)
    if result.commanded is not None:
        plain["command"] = {"counts": dict(result.commanded.counts), "changes": [asdict(change) for change in result.commanded.changes]}
    if result.margin_bound is not None:
        plain["expected_frames_compared"] = len(result.replay.frames) if result.replay else 0
        plain |= {"margin_bound": result.margin_bound, "flips": list(result.flips), "changes": list(result.changes),
                  "differences": [{"frame": difference.index, "cause": difference.cause, "detail": difference.detail,
                                   "dimensions": list(difference.dimensions), "picture": result.exhibits.get(difference.index),
                                   "expected": _action(difference.expected), "found": _action(difference.found)}
                                  for difference in result.differences]}
    return plain


def _action(frame: ReplayedFrame | None) -> list[float] | None:
    return None if frame is None or frame.action is None else [float(value) for value in frame.action]


def _with_its_frames(job: Job, expectation: Expectation) -> Job:
    """The expectation says which frames were looked at, unless the job does."""
    bag = expectation.provenance.get("bag", {})
    if job.stride == 1 and job.limit == 0 and isinstance(bag, dict):
        return replace(job, stride=max(1, int(bag.get("stride", 1))), limit=max(0, int(bag.get("limit", 0))))
    return job
