"""What ROS adds to the model: from a camera's stamp to the chunk that answers it, through the real policy_node over DDS."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openvla_ros.benchmark.needs import need_ros
from openvla_ros.benchmark.spread import Spread, spread
from openvla_ros.benchmark.untrained import tiny_checkpoint
from openvla_ros.errors import ConfigurationError

GOAL_MS = 5.0
"""p99 of the overhead while inference leaves a core free."""

TRANSPORTS = ("raw", "compressed")

IMAGE_STAGES = ("image", "resize", "preprocess", "upload")
"""Stages of a chunk that bring the picture to the model. All others are the model's own."""

PROFILE = "default"
"""Policy profile that gives the picture to the model's own resize, as the released server does: the least work beside ROS."""

INSTRUCTION = "put the red cube in the bowl"


@dataclass(frozen=True)
class Answer:
    """One chunk. Times are of the system clock [ns]; sent and received are noted by the middleware, not by Python."""

    stamp_ns: int  # of the camera
    sent_ns: int
    received_ns: int
    stage_ms: Mapping[str, float]
    fault: str


@dataclass(frozen=True)
class Times:
    """Of the chunks that answer pictures of one window of time [ms]."""

    answered: int
    waited: int  # of those: the policy was still busy when the picture was taken. They are not in the spreads below
    overhead_ms: Spread  # camera stamp to reception of the chunk, less every stage that the chunk names
    with_image_ms: Spread  # the same, less the stages of the model only: decoding and resizing count as overhead too
    to_sent_ms: Spread  # as overhead_ms, but until the chunk was sent
    image_ms: Spread  # IMAGE_STAGES together
    model_ms: Spread  # the other stages together


@dataclass(frozen=True)
class Overhead:
    """One run. What lies in `times.overhead_ms`: sending and receiving the picture, waking the node, its checks, the chunk's message,
    sending and receiving it. Pictures are sent as ready bytes, as a C++ driver would, and stamped just before.
    """

    transport: str
    reliability: str  # what the camera offers
    profile: str  # of Fast DDS; empty: its defaults
    checkpoint: str
    rate_hz: float
    cores: int
    threads: int  # of torch in policy_node, as it says
    nice: str  # the same
    unanswered: int  # pictures of the window that no chunk answers: lost on the way, or replaced by a newer one
    times: Times
    goal_ms: float | None  # for p99 of times.overhead_ms; None where inference takes every core


def measure_overhead(transport: str = "raw", *, seconds: float = 8.0, warm_s: float = 2.0, rate_hz: float = 30.0, width: int = 640,
                     height: int = 480, reliability: str = "reliable", fastdds: bool = True, threads: int = 0, checkpoint: str = "",
                     report: Callable[[str], None] = lambda text: None) -> Overhead:
    """Run bench_camera and policy_node for warm_s + seconds, and read the chunks. Starting and stopping take about 6 s more.

    transport: raw or compressed. reliability: reliable or best_effort. fastdds: with the profile that the environment names, else the
    shipped one; false: without. threads: of torch; 0: all cores but one, as policy_node does by itself. checkpoint: as policy_node takes
    it; empty: a tiny untrained one. Raises DependencyMissing without ROS or torch, ConfigurationError for values that nodes refuse, and
    OpenvlaRosError when a process does not do its part.
    """
    if transport not in TRANSPORTS:
        raise ConfigurationError(f"transport is {transport!r}, expected one of {', '.join(TRANSPORTS)}.")
    need_ros("the overhead of ROS")
    from openvla_ros.benchmark.lab import Lab

    with tempfile.TemporaryDirectory(prefix="openvla_ros_bench_") as name:
        folder = Path(name)
        checkpoint = checkpoint or tiny_checkpoint(folder / "tiny")
        report(f"{transport}: starting policy_node")
        with Lab(folder, fastdds) as lab:
            witness = lab.witness
            lab.start_policy(checkpoint, INSTRUCTION, policy=PROFILE, image_transport=transport, threads=threads)
            camera = lab.start("bench_camera", "openvla_ros.benchmark.camera:main", {
                "transport": transport, "reliability": reliability, "rate_hz": float(rate_hz), "width": width, "height": height})
            lab.wait(lambda: bool(witness.answers), "an answer to a picture")
            report(f"{transport}: warm-up, {warm_s:g} s")
            lab.rest(warm_s)
            report(f"{transport}: camera to chunk, {seconds:g} s")
            begin_ns = witness.now_ns()
            lab.rest(seconds)
            end_ns = witness.now_ns()
            lab.wait(lambda: witness.answers[-1].stamp_ns > end_ns, "the last answer")
            said = witness.health["/policy_node: policy"]
            lab.stop(camera)
            times, profile = evaluate(witness.answers, begin_ns, end_ns), lab.profile
    cores, used = len(os.sched_getaffinity(0)), int(said["threads"])
    sent = round((end_ns - begin_ns) / 1e9 * rate_hz)
    return Overhead(transport, reliability, profile, Path(checkpoint).name, rate_hz, cores, used, said["nice"],
                    max(0, sent - times.answered), times, GOAL_MS if used < cores else None)


def evaluate(answers: Sequence[Answer], begin_ns: int, end_ns: int) -> Times:
    """What the chunks say that answer pictures stamped in [begin, end). answers: all, in the order in which they came."""
    free_ns = [0, *(answer.sent_ns for answer in answers)]  # when the policy was done with the picture before
    seen = [(answer, free) for answer, free in zip(answers, free_ns, strict=False)
            if begin_ns <= answer.stamp_ns < end_ns and answer.stage_ms and not answer.fault]
    prompt = [answer for answer, free in seen if answer.stamp_ns >= free]
    image_ms = [sum(value for name, value in answer.stage_ms.items() if name in IMAGE_STAGES) for answer in prompt]
    model_ms = [sum(value for name, value in answer.stage_ms.items() if name not in IMAGE_STAGES) for answer in prompt]
    whole_ms = [(answer.received_ns - answer.stamp_ns) / 1e6 for answer in prompt]
    sent_ms = [(answer.sent_ns - answer.stamp_ns) / 1e6 for answer in prompt]
    return Times(
        len(seen), len(seen) - len(prompt),
        overhead_ms=spread([whole - image - model for whole, image, model in zip(whole_ms, image_ms, model_ms, strict=True)]),
        with_image_ms=spread([whole - model for whole, model in zip(whole_ms, model_ms, strict=True)]),
        to_sent_ms=spread([sent - image - model for sent, image, model in zip(sent_ms, image_ms, model_ms, strict=True)]),
        image_ms=spread(image_ms), model_ms=spread(model_ms))
