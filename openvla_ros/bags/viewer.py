"""The results of a run in, a file for the Rerun viewer out: camera, instruction, steps, tool, driver and faults on one time line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.bags.frames import COMPRESSED_IMAGE, image_of
from openvla_ros.bags.motion import STEPS_LONG
from openvla_ros.bags.page_content import PageFrame, PageRun, Track
from openvla_ros.bags.read import Recording
from openvla_ros.bags.report import write_whole
from openvla_ros.contract import ACTION_NAMES
from openvla_ros.errors import BagError, DependencyMissing, ImageError

TIME, NUMBER = "time since the first frame", "frame"
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "recorded": (150, 160, 172), "predicted": (209, 73, 91), "sent": (34, 113, 195), "against": (14, 143, 126)}


def write_rerun(run: PageRun, file: Path) -> Path:
    """Write the run to `file` (.rrd) and return it. Look at it with: rerun FILE.

    Every picture of the recordings is read again and goes in as the file that it is; one recording after the other, in flat memory.
    The file appears whole or not at all. Raises DependencyMissing without rerun-sdk, BagError when it cannot be written.
    """
    try:
        import rerun  # type: ignore[import-not-found, unused-ignore]  # late: an optional extra of several hundred megabytes
    except ModuleNotFoundError as error:
        raise DependencyMissing("a file for the Rerun viewer needs the Python package rerun-sdk, which is not installed. Install it with: "
                                "pip install 'openvla-ros[viewer]'") from error

    def fill(unfinished: Path) -> None:
        stream = rerun.RecordingStream("openvla_ros_replay")
        stream.save(unfinished)
        for number, track in enumerate(run.tracks):
            _write_track(rerun, stream, run, track, f"{number:03d} {track.name}" if len(run.tracks) > 1 else "")
        stream.flush()

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, fill)
    except OSError as error:
        raise BagError(f"the file for the viewer cannot be written to {file}: {error}. Choose another name for --rerun.") from error
    return file


def _write_track(rerun: Any, stream: Any, run: PageRun, track: Track, root: str) -> None:
    if not track.frames:
        return
    first_ns = track.frames[0].stamp_ns

    def log(frame: PageFrame, name: str, thing: Any) -> None:
        stream.set_time(TIME, duration=(frame.stamp_ns - first_ns) / 1e9)
        stream.set_time(NUMBER, sequence=frame.index)
        stream.log([root, *name.split("/")] if root else name, thing)

    for field in ("instruction", "driver", "fault", "difference"):
        for frame in _changes(track, field):
            log(frame, field, rerun.TextLog(getattr(frame, field) or "-"))
    for frame in track.frames:
        for name, colour in COLOURS.items():
            step = getattr(frame, name)
            if step is None:
                continue
            label = run.against if name == "against" else name
            for dimension, value in zip(ACTION_NAMES, step, strict=True):
                if np.isfinite(value):
                    log(frame, f"step/{dimension}/{label}", rerun.Scalars(float(value)))
            if frame.tool_m is not None and np.isfinite(step[:3]).all():
                log(frame, f"arm/{label}", rerun.Arrows3D(origins=[frame.tool_m], vectors=[STEPS_LONG * step[:3]], colors=[colour]))
        if frame.tool_m is not None:
            log(frame, "arm/tool", rerun.Points3D([frame.tool_m], radii=0.005))
        if frame.margin is not None:
            log(frame, "margin", rerun.Scalars(frame.margin))
        for stage, duration_ms in frame.stage_ms.items():
            log(frame, f"latency_ms/{stage}", rerun.Scalars(duration_ms))
    for frame, picture in _pictures(rerun, track):
        log(frame, "camera", picture)


def _changes(track: Track, field: str) -> Iterator[PageFrame]:
    """Frames at which a text is another than before."""
    if getattr(track.frames[0], field):
        yield track.frames[0]
    yield from (after for before, after in pairwise(track.frames) if getattr(after, field) != getattr(before, field))


def _pictures(rerun: Any, track: Track) -> Iterator[tuple[PageFrame, Any]]:
    """The pictures of the frames, as they were recorded; what cannot be shown is left out, for its frame says why."""
    wanted = {frame.index: frame for frame in track.frames}
    with Recording(track.path) as recording:
        topic = recording.topic(track.image_topic)
        for index, raw in enumerate(recording.messages([topic])):
            if index not in wanted:
                continue
            message = recording.decode(raw)
            try:
                rgb, is_jpeg = image_of(message, topic.type)
            except ImageError:
                continue
            if is_jpeg and topic.type == COMPRESSED_IMAGE and not track.rotate_180:
                yield wanted[index], rerun.EncodedImage(contents=bytes(message.data), media_type="image/jpeg")
            else:
                yield wanted[index], rerun.Image(np.ascontiguousarray(rgb[::-1, ::-1] if track.rotate_180 else rgb)).compress()
