"""How many pictures per second offline replay decodes: in line, and ahead in threads as `replay` does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from openvla_ros.benchmark.spread import Spread, spread
from openvla_ros.errors import DependencyMissing

GOAL_HZ = 500.0
"""Frames per second of 640x480 JPEG pictures, decoded ahead."""

AHEAD = 8
"""As many as `replay` takes."""

EPISODE_S, EPISODE_FPS = 2.0, 20.0


@dataclass(frozen=True)
class Decoding:
    """Passes over one recording. Rates are frames given per second, one number per pass; reading and sorting messages is part of it."""

    recording: str
    picture: str  # "640x480 jpeg"
    frames: int  # of one pass
    cores: int
    ahead: int  # pictures decoded in threads while the caller looks at earlier ones; 0: in line
    rate_hz: Spread
    slowest_hz: float
    goal_hz: float | None  # for the median of rate_hz; None where it is not the product's way


def measure_decoding(recording: Path | None = None, *, seconds: float = 3.0,
                     report: Callable[[str], None] = lambda text: None) -> tuple[Decoding, ...]:
    """Read a recording again and again, for `seconds` in line and as long ahead, the two by turns, after one pass as a warm-up.

    recording: a rosbag2 folder or file; None: an episode of 640x480 JPEG pictures that is drawn for the purpose (about 2 s).
    Raises BagError for an unusable recording, DependencyMissing without the bag library.
    """
    try:
        from openvla_ros.bags.episode import EpisodeSettings, make_episode
    except ModuleNotFoundError as error:
        raise DependencyMissing(f"reading recordings needs the Python package {error.name!r}, which is not installed. Install it with: "
                                "pip install 'openvla-ros[bags]'") from error
    with tempfile.TemporaryDirectory(prefix="openvla_ros_bench_") as name:
        if recording is None:
            report("drawing a recording")
            recording = Path(name) / "episode"
            make_episode(recording, EpisodeSettings(EPISODE_S, EPISODE_FPS))
        return _measure(recording, seconds, report)


def _measure(path: Path, seconds: float, report: Callable[[str], None]) -> tuple[Decoding, ...]:
    from openvla_ros.bags.frames import frames, select
    from openvla_ros.bags.read import Recording

    rates: dict[int, list[float]] = {0: [], AHEAD: []}
    with Recording(path) as recording:
        chosen = select(recording)
        shapes = [frame.rgb.shape for frame in frames(recording, chosen, ahead=AHEAD) if frame.rgb is not None]
        report(f"decoding {path.name}, {2 * seconds:g} s")
        until_s = perf_counter() + 2 * seconds
        while not all(rates.values()) or perf_counter() < until_s:
            for ahead, found in rates.items():
                began_s = perf_counter()
                count = sum(1 for _ in frames(recording, chosen, ahead=ahead))
                found.append(count / (perf_counter() - began_s))
        kind = "jpeg or png" if chosen.image.type.endswith("CompressedImage") else "raw"
    picture = f"{shapes[0][1]}x{shapes[0][0]} {kind}"
    return tuple(Decoding(path.name, picture, count, len(os.sched_getaffinity(0)), ahead, spread(found), min(found),
                          GOAL_HZ if ahead else None) for ahead, found in rates.items())
