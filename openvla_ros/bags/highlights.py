"""A run in, the few frames of it that a person should look at out, each with the reasons, and their pictures from the recordings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from openvla_ros.bags.frames import image_of
from openvla_ros.bags.page_content import PageFrame, PageRun, Track, action_table, distances
from openvla_ros.bags.read import Recording
from openvla_ros.contract import ByteArray, FloatArray
from openvla_ros.errors import BagError, ImageError

SMALLEST_SCALE = (0.005, 0.02, 0.5)
"""Error scales never shrink below these [m, rad, gripper share]: a recording at rest must not make noise look like news."""

TINY = 1e-6
"""Errors below it are rounding."""

EXAMPLES = 6
"""A page shows at least about so many pictures."""

APART = 3
"""Frames of one recording that are closer than this look alike; the second one is only taken when nothing else is left."""

LOW_MARGIN = 1.0
"""Logits: below this the second best token was close. Kernels and precisions alone move logits by 0.1 to 0.5."""


POSE, REPORT = "geometry_msgs/msg/PoseStamped", "openvla_msgs/msg/CommandReport"
MEASURED = ((POSE, "ee_pose"), (REPORT, "command_report"))
"""Types and last names of topics that say where the end effector is."""

POSE_WITHIN_NS = 300_000_000


@dataclass(frozen=True)
class Highlight:
    """A frame to look at. track: its place in PageRun.tracks."""

    track: int
    frame: PageFrame
    reasons: tuple[str, ...]


def most_interesting(run: PageRun, count: int = 10) -> list[Highlight]:
    """At most `count` frames: differences from what was expected, largest errors, faults, safety rules, close calls, in turn.

    Where hardly any stands out, examples from all over the run fill up.
    """
    frames = [(number, frame) for number, track in enumerate(run.tracks) for frame in track.frames]
    errors = _errors(run, "recorded")
    scores = _scores(errors)
    reasons: dict[int, list[str]] = {}
    rankings = [
        _by_text([frame.difference for _, frame in frames], "differs: "),
        ((place, f"error {describe(errors[place])}") for place in _largest(scores) if scores[place] > TINY),
        _by_text([frame.fault for _, frame in frames], "fault: "),
        _by_text([", ".join(frame.rules) for _, frame in frames], "safety: "),
        ((place, f"margin {frames[place][1].margin:.2g}: a close call") for place in _largest(
            np.array([-np.inf if frame.margin is None or frame.margin > LOW_MARGIN else -frame.margin for _, frame in frames]))),
    ]
    chosen = _in_turn(rankings, count, lambda place, taken: _is_near(frames, place, taken), reasons)
    for place in np.linspace(0, len(frames) - 1, EXAMPLES).astype(int).tolist() if frames else ():
        if len(chosen) < min(count, EXAMPLES) and not _is_near(frames, place, chosen):
            chosen.append(place)
            reasons[place] = ["an example"]
    return sorted((Highlight(frames[place][0], frames[place][1], tuple(reasons[place])) for place in chosen),
                  key=lambda highlight: (highlight.track, highlight.frame.index))


def most_different(run: PageRun, count: int = 10) -> list[Highlight]:
    """At most `count` frames in which the policy and `PageRun.against` differ most, the largest difference first."""
    frames = [(number, frame) for number, track in enumerate(run.tracks) for frame in track.frames]
    errors = _errors(run, "against")
    ranking = ((place, f"apart by {describe(errors[place])}") for place in _largest(_scores(errors)) if np.nansum(errors[place]) > TINY)
    reasons: dict[int, list[str]] = {}
    chosen = _in_turn([ranking], count, lambda place, taken: _is_near(frames, place, taken), reasons)
    return [Highlight(frames[place][0], frames[place][1], tuple(reasons[place])) for place in chosen]


def describe(error: FloatArray) -> str:
    """Three distances in words: "12 mm, 3.4°, gripper 0.50"."""
    words = (f"{error[0] * 1000:.3g} mm", f"{math.degrees(error[1]):.3g}°", f"gripper {error[2]:.2f}")
    return ", ".join(word for word, value in zip(words, error, strict=True) if math.isfinite(value))


def pictures(track: Track, frames: Sequence[PageFrame], longest_px: int) -> dict[int, ByteArray | str]:
    """Frame index -> its picture, uint8 [H, W, 3], at most `longest_px` wide, turned if the track says so; or why there is none."""
    found: dict[int, ByteArray | str] = {}
    try:
        with Recording(track.path) as recording:
            topic = recording.topic(track.image_topic)
            for frame in frames:
                try:
                    found[frame.index] = "the recording has no picture at that time any more"
                    for raw in recording.messages([topic], frame.log_ns, frame.log_ns + 1):
                        rgb, _ = image_of(recording.decode(raw), topic.type)
                        found[frame.index] = fit(rgb[::-1, ::-1] if track.rotate_180 else rgb, longest_px)
                        break
                except (BagError, ImageError) as error:
                    found[frame.index] = str(error)
    except BagError as error:
        return {frame.index: str(error) for frame in frames}
    return found


def tool_position(track: Track, frame: PageFrame) -> FloatArray | None:
    """[3] where the end effector was at a frame, in the base frame [m]: as the frame says, else as the recording measured it then."""
    if frame.tool_m is not None:
        return frame.tool_m
    try:
        with Recording(track.path) as recording:
            topics = [topic for topic in recording.topics if (topic.type, topic.name.rsplit("/", 1)[-1]) in MEASURED]
            nearest: tuple[int, FloatArray] | None = None
            for raw in recording.messages(topics, frame.log_ns - POSE_WITHIN_NS, frame.log_ns + POSE_WITHIN_NS):
                message = recording.decode(raw)
                if not getattr(message, "measured_pose_valid", True):
                    continue
                place = (message.pose if raw.topic.type == POSE else message.measured_pose).position
                away_ns = abs(raw.log_ns - frame.log_ns)
                if nearest is None or away_ns < nearest[0]:
                    nearest = away_ns, np.array([place.x, place.y, place.z], np.float64)
            return nearest[1] if nearest else None
    except BagError:
        return None  # then the motion is drawn beside the content of the picture, and says so


def fit(rgb: ByteArray, longest_px: int) -> ByteArray:
    """The picture, made smaller where it is wider than `longest_px`."""
    height, width = rgb.shape[:2]
    if width <= longest_px:
        return np.ascontiguousarray(rgb)
    size = (longest_px, max(1, round(height * longest_px / width)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def _errors(run: PageRun, other: str) -> FloatArray:
    """[n, 3] distances of all predictions from another of the actions."""
    parts = [distances(action_table(track.frames, "predicted"), action_table(track.frames, other)) for track in run.tracks]
    return np.concatenate(parts or [np.zeros((0, 3))])


def _scores(errors: FloatArray) -> FloatArray:
    """[n] one number per row of [n, 3]: each distance in units of what is usual in this run, added. -inf where nothing is known."""
    known = np.isfinite(errors)
    usual = [max(smallest, float(np.median(column[good]))) if good.any() else smallest
             for column, good, smallest in zip(errors.T, known.T, SMALLEST_SCALE, strict=True)]
    return np.where(known.any(axis=1), np.where(known, errors, 0.0) @ (1.0 / np.array(usual)), -np.inf)


def _largest(scores: FloatArray) -> Iterator[int]:
    """Places of the finite, positive or negative, scores, the largest first."""
    return (int(place) for place in np.argsort(-scores, kind="stable") if np.isfinite(scores[place]))


def _by_text(texts: Sequence[str], heading: str) -> Iterator[tuple[int, str]]:
    """The first place of each text, then the second of each, and so on: kinds before numbers."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        if text:
            places.setdefault(text, []).append(place)
    for turn in range(max(map(len, places.values()), default=0)):
        yield from ((same[turn], heading + text) for text, same in places.items() if turn < len(same))


def _in_turn(rankings: Sequence[Iterable[tuple[int, str]]], count: int, is_near: Callable[[int, Iterable[int]], bool],
             reasons: dict[int, list[str]]) -> list[int]:
    """One place of each ranking in turn, until there are `count`. Fills `reasons`; places near chosen ones come last."""
    queues, chosen, later = [iter(ranking) for ranking in rankings], list[int](), list[tuple[int, str]]()
    while queues and len(chosen) < count:
        for queue in list(queues):
            taken = False
            for place, reason in queue:
                if place in reasons:
                    reasons[place].append(reason)
                elif is_near(place, chosen):
                    later.append((place, reason))
                elif len(chosen) < count:
                    chosen.append(place)
                    reasons[place] = [reason]
                    taken = True
                    break
                else:
                    break
            if not taken:
                queues.remove(queue)
    for place, reason in later:
        if len(chosen) < count and place not in reasons:
            chosen.append(place)
            reasons[place] = [reason]
    return chosen


def _is_near(frames: Sequence[tuple[int, PageFrame]], place: int, taken: Iterable[int]) -> bool:
    track, frame = frames[place]
    return any(frames[other][0] == track and abs(frames[other][1].index - frame.index) < APART for other in taken)
