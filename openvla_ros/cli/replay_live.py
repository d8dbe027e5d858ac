"""`openvla-ros replay --live`: a recording through the real nodes over DDS, compared with the offline answers frame by frame."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from openvla_ros.bags.agreement import Agreement, agree
from openvla_ros.bags.expect import Expectation, read_expectation
from openvla_ros.cli.surroundings import surroundings
from openvla_ros.errors import BagError, ConfigurationError, DependencyMissing
from openvla_ros.regression import provenance
from openvla_ros.regression.job import Job, check, preparing, run_job
from openvla_ros.regression.workers import LoadedPolicy

if TYPE_CHECKING:
    from openvla_ros.ros.live_listener import LiveListener
    from openvla_ros.ros.processes import Process

RATE_HZ = 10.0
"""How often the run is looked at."""

FIRST_TICK_S = 600.0
"""How long the first tick of the clock is waited for with --attach: a large model may be loading."""

END_SILENCE_S = 3.0
"""The recording is over when its clock has been silent for so long."""

RUN_OPTIONS = ("unnorm_key", "device", "dtype", "quantization", "attention")
"""Settings that `openvla-ros run` takes as options; the image path comes from a policy profile."""


def replay_live(job: Job, attach: bool, rate: float) -> tuple[Agreement, dict[str, Any]]:
    """Play the recording of a job to the real nodes, or, with attach, listen to what others play in this ROS domain.

    Returns the agreement with the offline answers (or with `job.expect`), and what the run said about itself.
    Raises DependencyMissing without ROS, BagError when the run failed, and what is wrong with the input.
    """
    for package in ("rclpy", "openvla_msgs"):
        if find_spec(package) is None:
            raise DependencyMissing(f"--live needs ROS 2, and {package} is not importable. Use make setup, or source a ROS workspace. "
                                    "Without ROS, leave --live out.")
    check(job)
    if job.action_topic or job.stride != 1 or job.limit:
        raise ConfigurationError("--live plays the whole recording: leave out --stride, --limit and --action-topic.")
    environment = {} if attach else surroundings(True, None)
    os.environ.update(environment)  # before ROS is joined: a process has only one domain
    from openvla_ros.ros.live_listener import LiveListener

    listener = LiveListener()
    try:
        said = listen(listener) if attach else run(job, rate)
        heard, ticks = listener.chunks, listener.ticks
    finally:
        listener.close()
    return agree(offline(job), heard, ticks, job.tolerance, rate), said


def run(job: Job, rate: float) -> dict[str, Any]:
    """`openvla-ros run --bag` as a process of its own, to its end. Returns its summary. Raises BagError with the end of its log."""
    from openvla_ros.ros.processes import Part, Process

    job.output.mkdir(parents=True, exist_ok=True)
    process = Process(Part("run", "openvla_ros.cli.app:main", tuple(arguments(job, rate))), job.output)
    try:
        while process.exit_code is None:
            time.sleep(1.0 / RATE_HZ)
    finally:
        process.stop()
    return summary(process)


def arguments(job: Job, rate: float) -> list[str]:
    """The command line of `openvla-ros run` for a job. Its policy profile is written beside the report: it holds what has no option."""
    settings = job.policy
    profile = job.output / "policy.yaml"
    profile.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in vars(settings).items()
                               if name not in (*RUN_OPTIONS, "checkpoint", "threads")), encoding="utf-8")
    given = {"--bag": str(job.bag.resolve()), "--checkpoint": settings.checkpoint, "--policy": str(profile), "--rate": str(rate),
             "--log-dir": str(job.output / "logs"), "--domain": os.environ["ROS_DOMAIN_ID"], "--instruction": job.instruction,
             "--image-topic": job.image_topic, "--threads": str(settings.threads or ""),
             **{f"--{name.replace('_', '-')}": str(getattr(settings, name)) for name in RUN_OPTIONS}}
    return ["run", "--json", *(word for option, value in given.items() if value for word in (option, value))]


def summary(process: Process) -> dict[str, Any]:
    """What a run said at its end. Raises BagError when it failed."""
    for line in reversed(process.tail(30)):
        if line.startswith("{"):
            try:
                said: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            if "error" in said or process.exit_code != 0:
                raise BagError(f"the live run failed: {said.get('error') or process.obituary()}")
            return said
    raise BagError("\n".join([f"the live run failed: {process.obituary()}", *process.tail()]))


def listen(listener: LiveListener, patience_s: float = FIRST_TICK_S) -> dict[str, Any]:
    """Until the played clock has come and gone. Raises BagError when it does not come within the patience."""
    begun_s = time.monotonic()
    while listener.clock_silent_s is None:
        if time.monotonic() - begun_s > patience_s:
            raise BagError(f"no /clock was heard within {patience_s:g} s in ROS domain {os.environ.get('ROS_DOMAIN_ID', '0')}. Play the "
                           "recording with a clock: openvla-ros play, or ros2 bag play --clock.")
        time.sleep(1.0 / RATE_HZ)
    while (listener.clock_silent_s or 0.0) < END_SILENCE_S:
        time.sleep(1.0 / RATE_HZ)
    return {}


def offline(job: Job) -> Expectation:
    """The offline answers: those that were written down, or else those of the policy now."""
    if job.expect is not None:
        return read_expectation(job.expect)
    loaded = LoadedPolicy()
    try:
        policy = loaded.get(job.policy)
        result = run_job(replace(job, report=False, write_expected=job.output / "offline.json"), policy)
        assert result.replay is not None
        return Expectation(result.replay.frames, provenance.of_policy(job.policy, preparing(policy, evidence=True)))
    finally:
        loaded.close()


def finish(agreement: Agreement, said: dict[str, Any], folder: Path, as_json: bool) -> int:
    """Write and show the outcome. Exit code 0 when all agree, else 1."""
    plain = {"live": agreement.as_json(), "run": said}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "live.json").write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps({**plain, "report": str(folder / "live.json")}))
    else:
        show(agreement, said, folder / "live.json")
    return 0 if agreement.good else 1


def show(agreement: Agreement, said: dict[str, Any], file: Path) -> None:
    """For people."""
    console = Console()
    console.print(f"{agreement.compared} of {agreement.frames} frames answered live; {len(agreement.skipped)} skipped, "
                  f"{len(agreement.flips)} flips below the margin bound {agreement.margin_bound:g}", soft_wrap=True)
    if "frames_played" in said:
        console.print(f"played {said['frames_played']}, received {said.get('frames_received')}, inferred {said.get('frames_inferred')}")
    if agreement.age_ms is not None:
        console.print(f"from stamp to answer: median {agreement.age_ms.median:.1f} ms, p99 {agreement.age_ms.p99:.1f} ms")
    if agreement.clock is not None:
        console.print(f"clock: {agreement.clock.rate:.5f} s per s, drift {agreement.clock.drift_ppm:+.0f} ppm, jitter p99 "
                      f"{agreement.clock.jitter_ms.p99:.1f} ms")
    for fault, count in agreement.stops.items():
        console.print(f"{count} x stop: {fault or 'no reason given'}", markup=False, soft_wrap=True)
    for difference in agreement.differences[:8]:
        console.print(f"  frame {difference.index}: {difference.cause}: {difference.detail}", markup=False, soft_wrap=True)
    console.print("live and offline agree" if agreement.good else agreement.words, style="green" if agreement.good else "red", markup=False)
    console.print(f"report: {file}", soft_wrap=True, markup=False)
