"""Results in, what a page shows out: recorded, predicted, expected and sent actions of each frame, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import yaml

from openvla_ros.bags.page_content import PageFrame, PageRun, Track
from openvla_ros.bags.read import Recording
from openvla_ros.bags.replay import Replay, ReplayedFrame
from openvla_ros.bags.steps import Ledger, Step, StepSettings, steps
from openvla_ros.contract import FloatArray
from openvla_ros.errors import BagError, ConfigurationError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.regression.job import GOOD, Job, Result
from openvla_ros.regression.provenance import versions
from openvla_ros.regression.robots import read_robot
from openvla_ros.robot import Camera, from_mapping

EXPECTED = "expected"


def page_of(jobs: Sequence[Job], results: Sequence[Result], others: Sequence[Result] = (), against: str = "") -> PageRun:
    """One page for all results, in the order of their jobs.

    others, against: results of another policy over the same recordings, and its name. Without them the frames that are not as expected
    show the expected action. Motions are drawn into the pictures by the camera of the robot profile that was recorded, or else of the
    job's. Raises ConfigurationError when that cannot be read.
    """
    tracks, failed, notes = [], dict[str, str](), list[str]()
    cameras = {robot: read_robot(robot).profile.camera for robot in dict.fromkeys(job.robot for job in jobs)}
    for place, (job, result) in enumerate(zip(jobs, results, strict=True)):
        other = others[place] if others else None
        if result.replay is None:
            failed[job.name] = result.error
            continue
        if other is not None and other.replay is None:
            failed[f"{job.name} against"] = other.error
        tracks.append(_track(job, result, other, _recorded_camera(job) or cameras[job.robot]))
        notes += [*result.replay.notes, *(f"{job.name}: {note}" for note in result.replay.tally.notes),
                  *(f"{job.name}: not as it was when the expectation was made: {change}" for change in result.changes)]
    policies = list(dict.fromkeys(result.replay.policy for result in results if result.replay is not None))
    policy = ", ".join(policies) or "no policy"
    judged = any(result.margin_bound is not None for result in results)
    where = jobs[0].name if len(jobs) == 1 else f"{len(jobs)} recordings"
    return PageRun(
        f"{policy} on {where}", policy, tracks, against or (EXPECTED if any(result.differences for result in results) else ""),
        all(result.status == GOOD for result in results) if judged else None, _facts(jobs), tuple(dict.fromkeys(notes)), failed)


def _track(job: Job, result: Result, other: Result | None, camera: Camera | None) -> Track:
    assert result.replay is not None
    wrong: dict[int, list[str]] = {}
    expected: dict[int, FloatArray | None] = {}
    for difference in result.differences:
        wrong.setdefault(difference.index, []).append(f"{difference.cause}: {difference.detail}")
        if difference.expected is not None:
            expected[difference.index] = difference.expected.action
    if other is not None and other.replay is not None:
        expected = {frame.index: frame.action for frame in other.replay.frames}
    commanded = result.commanded.frames if result.commanded is not None else {}
    then = _sent_then(job, result.replay)

    def show(frame: ReplayedFrame) -> PageFrame:
        arm = commanded.get(frame.index)
        margins, before = frame.evidence.margins if frame.evidence is not None else (), then.get(frame.index)
        return PageFrame(
            frame.index, frame.stamp_ns, frame.log_ns, frame.instruction, frame.recorded if before is None else before.action,
            frame.action, arm.sent if arm else None, expected.get(frame.index), frame.fault, arm.rules if arm else (),
            "; ".join(wrong.get(frame.index, ())), min(margins, default=None),
            arm.driver if arm else before.driver if before else "", stage_ms=frame.stage_ms)

    return Track(job.name, job.bag, result.replay.image_topic, tuple(map(show, result.replay.frames)), result.replay.action_topic,
                 camera, job.policy.rotate_180)


def _sent_then(job: Job, replay: Replay) -> Mapping[int, Step]:
    """Frame -> what the arm was sent on the recorded day, where command_node's reports say so and no recorded actions do."""
    if replay.action_topic:
        return {}
    settings = StepSettings(replay.image_topic, replay.frames[0].instruction, source="sent", pictures=False)
    try:
        with Recording(job.bag) as recording:
            return {step.frame_index: step for step in steps(recording, settings, Ledger()) if isinstance(step, Step)}
    except BagError:
        return {}  # a recording of pictures alone


def _recorded_camera(job: Job) -> Camera | None:
    """Of the robot profile that `openvla-ros record` put into the recording."""
    try:
        with Recording(job.bag) as recording:
            text = recording.facts().get("openvla_ros.robot_profile", "")
        return from_mapping(yaml.safe_load(text), str(job.bag)).camera if text else None
    except (BagError, yaml.YAMLError, ConfigurationError):
        return None  # moved meanwhile, or of another release; the job's robot may have one


def _facts(jobs: Sequence[Job]) -> Mapping[str, str]:
    """How it was run, as far as it was the same for all."""
    settings = {name: value for name, value in asdict(jobs[0].policy).items()
                if all(getattr(job.policy, name) == value for job in jobs) and (name == "checkpoint" or value != _default(name))}
    facts = {f"policy {name}": str(value) for name, value in settings.items()}
    facts["through"] = ", ".join(dict.fromkeys(job.through for job in jobs))
    facts["expectations"] = ", ".join(dict.fromkeys(str(job.expect) for job in jobs if job.expect is not None)) or "none"
    return {**facts, **{name: version for name, version in versions().items() if version}}


def _default(name: str) -> object:
    return getattr(PolicySettings("scripted"), name)
