"""A run for the Rerun viewer: camera, instruction, driver, each step, target and measured tool, gripper, latency, on one time line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openvla_ros.contract import ACTION_NAMES

if TYPE_CHECKING:
    from openvla_ros.ros.chronicle import Page

TIME = "time since the start"


def write_rerun(page: Page, path: Path) -> Path | None:
    """Write the .rrd file. Returns None where nothing happened. Raises ImportError without rerun-sdk."""
    if not page.rows:
        return None
    import rerun  # type: ignore[import-not-found, unused-ignore]  # late: an optional extra

    stream = rerun.RecordingStream("openvla_ros_run")
    stream.save(path)

    def at(time_s: float) -> None:
        stream.set_time(TIME, duration=time_s)

    for picture in page.pictures:
        at(picture.time_s)
        stream.log("camera", rerun.Image(picture.rgb()).compress())
    for time_s, text in page.instructions:
        at(time_s)
        stream.log("instruction", rerun.TextLog(text or "(stop)"))
    drivers = [page.rows[0], *(after for before, after in pairwise(page.rows) if after.driver != before.driver)]
    for row in drivers:
        at(row.time_s)
        stream.log("driver", rerun.TextLog(row.driver))
    for row in page.rows:
        at(row.time_s)
        for name, place_m in (("measured", row.measured_m), ("target", row.target_m)):
            if np.isfinite(place_m).all():
                stream.log(f"tool/{name}", rerun.Points3D([place_m], radii=0.005))
                for axis, value_m in zip("xyz", place_m, strict=True):
                    stream.log(f"tool_{axis}/{name}", rerun.Scalars(float(value_m)))
        for name, value in zip(ACTION_NAMES, row.sent, strict=False):
            stream.log(f"delta/{name}", rerun.Scalars(value))
    for name, series in (("gripper/measured", page.openings), ("latency_ms", page.latencies)):
        for time_s, value in series:
            at(time_s)
            stream.log(name, rerun.Scalars(value))
    stream.flush()
    return path
