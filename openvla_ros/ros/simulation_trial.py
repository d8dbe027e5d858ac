"""Closed loop through ROS: episodes in front of the real command_node, with the safety chain on, judged as those in process are.

Comes in: a checkpoint, kinds of tasks, seeds; goes out: a TaskResult per kind, as from `simulation.evaluate`, and how the way there went.
An episode: HOLD, another scene, the instruction, POLICY, and a look at the scene every 0.2 s of simulated time from its first step on.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from openvla_msgs.msg import CommandReport
from openvla_msgs.srv import SetDriver

from openvla_ros.contract import STEP_S
from openvla_ros.errors import ConfigurationError, HandoffRefused
from openvla_ros.ros.convert import SECOND_NS, to_ns
from openvla_ros.ros.processes import Part
from openvla_ros.ros.simulation_stage import ROBOT, Moment, Stage, ros_arguments
from openvla_ros.simulation.evaluate import Episode, TaskResult, other_task, phrase, task_of
from openvla_ros.simulation.scene import EVALUATION_SEEDS
from openvla_ros.simulation.task import KINDS, Judge

EXPERT = "expert"

POLICY_PROFILE = "default"
"""Profile of policies for the simulation's camera; the checkpoint may be another than its own."""

FALLS = 10
"""So often POLICY is chosen again in one episode, where it fell to HOLD: each is a fault of the episode. A computer that stalls for a
quarter of a second is enough for one."""

STARTING_S = 5.0
"""An episode that has not begun by then [simulated time] has failed: the policy gives no action that may be played."""


@dataclass
class Timing:
    """How the command path went, in simulated time, over all episodes."""

    ages_s: list[float] = field(default_factory=list)  # of the observation behind each step, when the step began
    gaps_s: list[float] = field(default_factory=list)  # from the start of one step to that of the next
    leads_m: list[float] = field(default_factory=list)  # the target ahead of the measured tool, when a step began
    rules: Counter[str] = field(default_factory=Counter)  # that changed or refused something, by reports
    chunks: int = 0
    driven_s: float = 0.0  # POLICY drove for so long
    falls: int = 0  # from POLICY to HOLD that nobody asked for

    def to_mapping(self) -> dict[str, object]:
        """For JSON: medians, 95 % and largest values, and counts."""
        return {"steps": len(self.ages_s), "observation_age_s": _spread(self.ages_s), "step_distance_s": _spread(self.gaps_s),
                "lead_m": _spread(self.leads_m), "chunks_per_s": round(self.chunks / self.driven_s, 2) if self.driven_s else None,
                "falls_to_hold": self.falls, "rules": dict(sorted(self.rules.items()))}


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    median, high, largest = np.percentile(values, [50.0, 95.0, 100.0])
    return {"median": round(float(median), 4), "p95": round(float(high), 4), "max": round(float(largest), 4)}


@dataclass(frozen=True)
class Trials:
    """What `run_trials` found."""

    results: Mapping[str, TaskResult]  # by kind, in the order that was asked for
    timing: Timing


def run_trials(checkpoint: str, kinds: Sequence[str], seeds: Sequence[int], *, instruction_control: str = "",
               phrases: Mapping[str, Sequence[str]] | None = None, real_time_factor: float = 1.0, threads: int = 1,
               max_observation_age_s: float = 0.6, domain: int | None = None, log_folder: Path | None = None,
               progress: Callable[[int, int], None] | None = None) -> Trials:
    """One episode per kind and seed, one after the other, through policy_node, command_node and simulation_node as processes.

    checkpoint: as policy_node takes it, or "expert". The same seeds give the same scenes and tasks as `evaluate` in process, so that
    episodes can be compared one by one. real_time_factor: below 1 for a computer on which the policy is slow. domain: ROS_DOMAIN_ID; None:
    one that is free. log_folder: for the logs of the processes; None: a temporary one. progress: called with (episodes done, in all).

    Blocks the calling thread; joins ROS on this computer only. Raises ConfigurationError, and PartDied when a process ends.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigurationError(f"tasks {unknown} are unknown, expected some of {', '.join(KINDS)}.")
    if not kinds or not seeds:
        raise ConfigurationError(f"there is nothing to evaluate: {len(kinds)} tasks, {len(seeds)} seeds.")
    if foreign := [seed for seed in seeds if seed not in EVALUATION_SEEDS]:
        raise ConfigurationError(f"seed {foreign[0]} is not for evaluation; those are {EVALUATION_SEEDS.start} to "
                                 f"{EVALUATION_SEEDS.stop - 1}.")
    if instruction_control not in ("", "other-colour"):
        raise ConfigurationError(f"instruction control is {instruction_control!r}, expected 'other-colour', or nothing.")
    folder = Path(tempfile.mkdtemp(prefix="openvla_ros_trials_")) if log_folder is None else log_folder
    timing, episodes = Timing(), []
    with Stage(policy_part(checkpoint, threads, max_observation_age_s), folder, domain, real_time_factor=real_time_factor,
               lifecycle=checkpoint != EXPERT, parameters={"max_observation_age_s": float(max_observation_age_s)}) as stage:
        wanted = [(kind, seed) for kind in kinds for seed in seeds]
        for kind, seed in wanted:
            episodes.append(run_episode(stage, kind, seed, instruction_control, phrases, timing))
            if progress is not None:
                progress(len(episodes), len(wanted))
    return Trials({kind: TaskResult(kind, tuple(episode for episode in episodes if episode.task.kind == kind)) for kind in kinds}, timing)


def policy_part(checkpoint: str, threads: int, max_observation_age_s: float) -> Part:
    """The process that publishes the chunks."""
    if checkpoint == EXPERT:
        return Part("policy_node", "openvla_ros.ros.expert_node:main", ros_arguments({"robot": ROBOT}))
    return Part("policy_node", "openvla_ros.ros.policy_node:main", ros_arguments({
        "policy": POLICY_PROFILE, "checkpoint": checkpoint, "threads": threads, "use_sim_time": "true",
        "max_observation_age_s": float(max_observation_age_s)}))


def run_episode(stage: Stage, kind: str, seed: int, instruction_control: str, phrases: Mapping[str, Sequence[str]] | None,
                timing: Timing) -> Episode:
    """One episode on a stage that is ready. It leaves the driver as it is; the next one begins with HOLD."""
    director = stage.director
    task = task_of(kind, seed)
    told = other_task(task, seed) if instruction_control else task
    judge, told_judge = Judge(task), Judge(told)
    stage.reset(seed)
    director.instruct(phrase(told, seed, phrases))
    director.forget()
    faults = 0
    stage.drive_soon(SetDriver.Request.POLICY)
    begun_ns = first_ns = None
    starting_ns = director.now_ns
    while not (judge.finished or told_judge.finished):  # as in process: what is done first ends the episode
        if director.driver != "POLICY":
            faults, timing.falls = faults + 1, timing.falls + 1
            if faults > FALLS or not _resume(stage):
                break
            begun_ns = None if begun_ns is None else director.now_ns  # the time in which nobody drove is not the policy's
        if begun_ns is None:
            begun_ns = first_ns = next((to_ns(report.header.stamp) for report in director.reports if report.step_started), None)
            if begun_ns is None:
                if director.now_ns - starting_ns > STARTING_S * SECOND_NS:
                    faults += 1
                    break
                stage.pass_time(STEP_S / 10.0)
                continue
        due_ns = begun_ns + round(STEP_S * SECOND_NS)
        moment = _moment(stage, due_ns)
        begun_ns = due_ns
        for one in (judge, told_judge):
            one.update(moment.state)
    steps = [report for report in director.reports if report.step_started]
    faults += sum(bool(chunk.fault) for chunk in director.chunks)
    _note(timing, steps, director.reports, len(director.chunks), 0.0 if first_ns is None else (director.now_ns - first_ns) / SECOND_NS)
    return Episode(task, told, seed, judge.success, judge.success_step or judge.steps, judge.wrong, judge.stuck, faults,
                   told_judge.success)


def _moment(stage: Stage, due_ns: int) -> Moment:
    """The scene at a time, or a little later."""
    director = stage.director
    stage.wait(lambda: bool(director.moments) and director.moments[-1].stamp_ns >= due_ns, "the scene")
    return next(moment for moment in director.moments if moment.stamp_ns >= due_ns)


def _resume(stage: Stage) -> bool:
    """Whoever watches the trial chooses POLICY again, as a person at a robot would."""
    try:
        stage.drive_soon(SetDriver.Request.POLICY)
    except HandoffRefused:
        return False
    return True


def _note(timing: Timing, steps: Sequence[CommandReport], reports: Sequence[CommandReport], chunks: int, driven_s: float) -> None:
    starts_s = [to_ns(step.header.stamp) / SECOND_NS for step in steps]
    timing.ages_s += [start_s - to_ns(step.observation_stamp) / SECOND_NS for start_s, step in zip(starts_s, steps, strict=True)]
    timing.gaps_s += np.diff(starts_s).tolist()
    for step in steps:
        if step.target_pose_valid and step.measured_pose_valid:
            target, measured = step.target_pose.position, step.measured_pose.position
            timing.leads_m.append(float(np.linalg.norm([target.x - measured.x, target.y - measured.y, target.z - measured.z])))
    timing.rules.update(rule for report in reports for rule in report.rules)
    timing.chunks += chunks
    timing.driven_s += driven_s
