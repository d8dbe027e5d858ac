"""What a policy is expected to answer to a recording: kept in a file, compared with what it answers today, the cause named.

The file is JSON with one frame per line, so that a change of it can be read in a review. Which answers count as equal:

- Token ids are equal as long as the recorded margin of a token (its logit minus that of the best other one) exceeds the bound.
  At a token with a smaller margin rounding decides: another id there is a *flip*. It is counted, and the rest of that frame is
  compared by the action, within a tolerance per dimension.
- With equal ids, and for policies without tokens, the actions are equal within `EXACT` in their own units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from openvla_ros.bags.frames import Marks
from openvla_ros.bags.replay import ACTION_UNITS, ReplayedFrame
from openvla_ros.bags.report import write_whole
from openvla_ros.contract import ACTION_NAMES, Evidence, FloatArray
from openvla_ros.errors import BagError, ConfigurationError

FORMAT, VERSION = "openvla_ros expected actions", 1

EXACT = 1e-9
"""Actions that are equal but for the order of two additions."""

EXACT_PATH = 1e-6
"""The same for what is summed up over many ticks [m, rad]."""

MARGIN_BOUNDS: Mapping[str, float] = MappingProxyType({"float32": 0.01, "bfloat16": 1.0})
"""Default bound on the margin by the dtype that the file was made with. Two logits may each be off by half of it: on the released code
float32 differs by up to 2e-4 and bfloat16 by up to 0.15 in the first token's logits, and 0.5 is allowed there."""


@dataclass(frozen=True)
class Tolerance:
    """How far an answer may be from the expected one. Raises ConfigurationError.

    action: largest difference per dimension in a frame whose ids flipped, in the order of ACTION_NAMES. margin: None takes
    MARGIN_BOUNDS by the dtype of the expectation. flips: largest share of the frames that may flip.
    """

    margin: float | None = None
    action: tuple[float, ...] = (0.01, 0.01, 0.01, 0.05, 0.05, 0.05, 1.0)
    flips: float = 0.1

    def __post_init__(self) -> None:
        if self.margin is not None and not 0.0 <= self.margin < math.inf:
            raise ConfigurationError(f"the margin is {self.margin}, expected a number of 0 or more.")
        if len(self.action) != len(ACTION_NAMES) or not all(0.0 <= value < math.inf for value in self.action):
            raise ConfigurationError(f"the tolerances of the action are {self.action}, expected 7 numbers of 0 or more: "
                                     f"{', '.join(ACTION_NAMES)}.")
        if not 0.0 <= self.flips <= 1.0:
            raise ConfigurationError(f"the share of flips is {self.flips}, expected 0 to 1.")


@dataclass(frozen=True)
class Commanded:
    """What the arm would have received for a frame's step.

    sent: [7] the step after its safety chain, None where it was not played. moved: [6] metres and radians, the velocities that were
    sent while it played, summed over the ticks: what the arm was told in the end.
    """

    sent: FloatArray | None
    rules: tuple[str, ...]  # that changed or refused it
    driver: str  # who drove when its chunk came
    moved: FloatArray | None = None


@dataclass(frozen=True)
class Expectation:
    """An expected run. provenance: what it was made with, in plain values, as `regression.provenance` collects it."""

    frames: tuple[ReplayedFrame, ...]
    provenance: Mapping[str, Any]
    commanded: Mapping[int, Commanded] = field(default_factory=dict)  # by frame index; empty without a pilot


@dataclass(frozen=True)
class Difference:
    """A frame that is not as expected. cause: one word of CAUSES; detail: what was found, in words."""

    index: int
    cause: str
    detail: str
    expected: ReplayedFrame | None
    found: ReplayedFrame | None
    dimensions: tuple[str, ...] = ()  # that differ by more than they may


CAUSES: Mapping[str, str] = MappingProxyType({
    "frames": "the recording or the choice of its frames",
    "input ids": "the instruction, the prompt or the tokenizer",
    "picture": "the recorded picture, or its decoder",
    "pixels": "the image path: resize, crop, turn, normalisation",
    "logits": "the weights, or how the model is computed",
    "statistics": "the action statistics, or the decoding of tokens",
    "action": "the policy, which shows no evidence",
    "safety": "the safety chain, the robot profile or the handoff",
})
"""Where two answers part, in the order in which it is looked for."""


class Examiner:
    """Compares frame by frame, while the pictures pass. `finish` says what is missing."""

    def __init__(self, expectation: Expectation, provenance: Mapping[str, Any], tolerance: Tolerance) -> None:
        """provenance: of today's run, to name what changed."""
        self._expected = {frame.index: frame for frame in expectation.frames}
        self._then, self._now, self._tolerance = expectation.provenance, provenance, tolerance
        mode = expectation.provenance.get("policy", {}).get("mode", {})
        self.margin_bound = tolerance.margin if tolerance.margin is not None else MARGIN_BOUNDS.get(mode.get("dtype", ""), 0.0)
        self._looked_at: set[int] = set()
        self.flips: list[int] = []  # indices of frames whose ids flipped below the bound
        self._first_flip: ReplayedFrame | None = None
        self.compared = 0

    def look(self, found: ReplayedFrame) -> Difference | None:
        """Compare one frame. None: it is as expected, or its ids flipped and the action is within its tolerance."""
        self._looked_at.add(found.index)
        expected = self._expected.get(found.index)
        if expected is None:
            return Difference(found.index, "frames", "there was no such frame when the expectation was made", None, found)
        self.compared += 1
        if expected.fault != found.fault:
            return self._name(expected, found, f"fault {found.fault or 'none'!r}, expected {expected.fault or 'none'!r}", ())
        if expected.action is None or found.action is None:  # the same fault
            return None
        place = first_difference(expected.token_ids, found.token_ids)
        apart = np.abs(found.action - expected.action)
        if place is None:
            wrong = tuple(name for name, size in zip(ACTION_NAMES, apart, strict=True) if not size <= EXACT)
            return self._name(expected, found, in_words(expected.action, found.action, wrong), wrong) if wrong else None
        margin = margin_at(expected, place)
        if margin is None or not margin <= self.margin_bound or place >= min(len(expected.token_ids), len(found.token_ids)):
            wrong = tuple(name for name, size in zip(ACTION_NAMES, apart, strict=True) if not size <= EXACT)
            says = "" if margin is None or math.isnan(margin) else f", where the margin was {margin:.3g} (bound {self.margin_bound:.3g})"
            return self._name(expected, found, f"token {place + 1} is {at(found.token_ids, place)}, expected "
                              f"{at(expected.token_ids, place)}{says}; {in_words(expected.action, found.action, wrong)}", wrong)
        self.flips.append(found.index)
        self._first_flip = self._first_flip or found
        wrong = tuple(name for name, size, allowed in zip(ACTION_NAMES, apart, self._tolerance.action, strict=True) if not size <= allowed)
        return self._name(expected, found, f"token {place + 1} flipped at a margin of {margin:.3g}, which is allowed, but "
                          f"{in_words(expected.action, found.action, wrong)} is more than the tolerance", wrong) if wrong else None

    def finish(self) -> list[Difference]:
        """What can be said only at the end: frames that did not come, and too many flips."""
        missing = [Difference(index, "frames", "this frame was expected and did not come", frame, None)
                   for index, frame in self._expected.items() if index not in self._looked_at]
        return [*missing, *self.too_many_flips()]

    def too_many_flips(self) -> list[Difference]:
        """One difference, at the first frame that flipped, when more of those that were compared did than may; else none."""
        allowed = self._tolerance.flips and max(1.0, self._tolerance.flips * self.compared)  # one in a short recording is not too many
        if self._first_flip is None or len(self.flips) <= allowed:
            return []
        index = self._first_flip.index
        return [Difference(index, "logits", f"the ids of {len(self.flips)} of {self.compared} frames flipped below the margin bound, at "
                           f"most {allowed:g} may", self._expected[index], self._first_flip)]

    def changes(self) -> tuple[str, ...]:
        """What is not as it was when the expectation was made, in words; it need not have done any harm.

        Where the checkpoint lies does not matter as long as its content is the same, and a pilot that did not run is no change.
        """
        lines = changed(self._then, self._now)
        same = _part(self._then, "checkpoint") == _part(self._now, "checkpoint") != {}
        return tuple(line for line in lines if not (line.startswith(("bag.name", "policy.name", "policy.settings.checkpoint")) and same)
                     and not ("command" not in self._now and line.startswith("command")))

    def _name(self, expected: ReplayedFrame, found: ReplayedFrame, detail: str, wrong: tuple[str, ...]) -> Difference:
        cause, why = diagnose(expected, found, self._then, self._now)
        return Difference(found.index, cause, f"{detail}. {why}", expected, found, wrong)


def diagnose(expected: ReplayedFrame, found: ReplayedFrame, then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    """Where two answers to a frame part: a word of CAUSES, and a sentence. Looked for from the camera to the arm."""
    if expected.instruction != found.instruction:
        return "input ids", f"The instruction was {expected.instruction!r} and is {found.instruction!r}."
    old, new = expected.evidence, found.evidence
    if old is not None and new is not None and old.input_ids != new.input_ids:
        place = first_difference(old.input_ids, new.input_ids) or 0
        return "input ids", (f"The prompt's ids differ from place {place + 1} on ({at(old.input_ids, place)} became "
                             f"{at(new.input_ids, place)}): prompt style or tokenizer changed.")
    if expected.marks is not None and found.marks is not None and expected.marks.picture != found.marks.picture:
        if expected.marks.message != found.marks.message:
            return "picture", "The recorded message is another one: the recording was changed."
        return "picture", "The recorded message is the same and its decoded picture is not: the decoder changed" + \
            _versions(then, now, "pillow", "opencv") + "."
    if old is not None and new is not None and old.pixels != new.pixels:
        differing = ", ".join(changed(_part(then, "preprocessing"), _part(now, "preprocessing"))) or \
            f"its settings are the same{_versions(then, now, 'pillow', 'numpy', 'openvla_ros')}"
        return "pixels", f"The picture is the same and what the model saw of it is not: {differing}."
    if expected.token_ids != found.token_ids or expected.fault != found.fault:
        if old is None or new is None:
            return "action", "The policy shows no evidence, so nothing more is known."
        weights = then.get("policy", {}).get("checkpoint") != now.get("policy", {}).get("checkpoint")
        modes = ", ".join(changed(_part(then, "mode"), _part(now, "mode")))
        why = "the checkpoint's files are others" if weights else f"the mode is another: {modes}" if modes else \
            f"the checkpoint and the mode are the same{_versions(then, now, 'torch', 'transformers', 'openvla_ros')}"
        return "logits", f"Prompt and pixels are the same: {why}."
    if old is None:
        return "action", "The policy shows no evidence, so nothing more is known."
    differing = ", ".join(changed(_part(then, "statistics"), _part(now, "statistics"))) or "they are the same, so the decoding changed"
    return "statistics", f"The token ids are the same: look at the statistics ({differing})."


def compare_commanded(expected: Expectation, frames: Sequence[ReplayedFrame], commanded: Mapping[int, Commanded],
                      differing: Sequence[Difference], flips: Collection[int], tolerance: Tolerance) -> list[Difference]:
    """Frames whose action is as expected, and whose command is not. A command that is there on one side only is a difference.

    differing: those that differ before the arm; they are passed over. flips: indices of frames whose ids flipped, which is allowed.
    What is sent for those may be apart by `tolerance.action`, and other rules may act. So it is for the frame behind such a one, whose
    step follows another velocity and gripper, and for those behind that until one is equal again. Whether a step is played, and who
    drives, must be the same everywhere.
    """
    known, before = {difference.index for difference in differing}, {frame.index: frame for frame in expected.frames}
    found, follows = list[Difference](), False  # whether what was played before this frame was another
    for frame in frames:
        if frame.index in known:
            follows = True
            continue
        old, new = expected.commanded.get(frame.index), commanded.get(frame.index)
        if old is None or new is None:
            if old is not new:
                detail = "It came to the pilot, and the expectation has no command for it." if old is None else \
                    "It never came to the pilot."
                found.append(Difference(frame.index, "safety", detail, before.get(frame.index), frame))
            continue
        loose, why = frame.index in flips or follows, "The action is as expected."
        detail = _apart(old, new, None)
        follows = loose and (bool(detail) or (follows and old.sent is None and new.sent is None))
        if loose:
            detail = _apart(old, new, tolerance.action)
            why = "Its ids flipped, which is allowed; what the arm gets is further apart than that." if frame.index in flips else \
                "The action is as expected; what was played before it was another."
        if detail:
            found.append(Difference(frame.index, "safety", f"{detail}. {why}", before.get(frame.index), frame))
    return found


def _apart(old: Commanded, new: Commanded, allowed: Sequence[float] | None) -> str:
    """What differs between two commands, in words; empty where nothing does.

    allowed: how far each dimension may be apart, whatever rules acted; None: the same rules, and equal but for rounding.
    """
    step_bounds = np.full(len(ACTION_NAMES), EXACT) if allowed is None else np.array(allowed)
    path_bounds = np.full(6, EXACT_PATH) if allowed is None else step_bounds[:6]
    detail = ""
    if (old.sent is None) != (new.sent is None):
        detail = f"its step was {'not ' if new.sent is None else ''}played, expected {'' if new.sent is None else 'not '}so"
    elif old.sent is not None and new.sent is not None and not (np.abs(old.sent - new.sent) <= step_bounds).all():
        wrong = tuple(name for name, size, bound in zip(ACTION_NAMES, np.abs(old.sent - new.sent), step_bounds, strict=True)
                      if not size <= bound)
        detail = f"sent to the arm: {in_words(old.sent, new.sent, wrong)}"
    elif old.moved is not None and new.moved is not None and not (np.abs(old.moved - new.moved) <= path_bounds).all():
        detail = (f"the step is the same, but the arm was told to move by {np.round(new.moved, 5).tolist()} m and rad, expected "
                  f"{np.round(old.moved, 5).tolist()}")
    elif allowed is None and old.rules != new.rules:
        detail = "the same was sent"
    elif old.driver != new.driver:
        detail = f"the driver was {new.driver}, expected {old.driver}"
    if not detail or old.rules == new.rules:
        return detail
    return f"{detail}; rules that acted: {', '.join(new.rules) or 'none'}, expected {', '.join(old.rules) or 'none'}"


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which two sequences differ; None for equal ones."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return None if len(one) == len(other) else min(len(one), len(other))


def margin_at(frame: ReplayedFrame, place: int) -> float | None:
    """The recorded margin of a token; None where there is none, NaN where the file says null: it was no finite number."""
    return frame.evidence.margins[place] if frame.evidence is not None and place < len(frame.evidence.margins) else None


def at(ids: Sequence[int], place: int) -> str:
    """An id in words; there may be none at that place."""
    return str(ids[place]) if place < len(ids) else "missing"


def in_words(expected: FloatArray, found: FloatArray, names: Sequence[str]) -> str:
    """The named dimensions of two actions: "dx +0.0123 m, expected +0.0100 m"."""
    said = [f"{name} {found[column]:+.5f}, expected {expected[column]:+.5f} {unit}"
            for column, (name, unit) in enumerate(zip(ACTION_NAMES, ACTION_UNITS, strict=True)) if name in names]
    return "; ".join(said) or "the action is the same"


def changed(then: Any, now: Any, where: str = "") -> list[str]:
    """The leaves of two plain values that differ: "policy.mode.dtype: bfloat16 became float32". Lists and texts are leaves."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return [line for key in {**then, **now}
                for line in changed(then.get(key), now.get(key), f"{where}.{key}" if where else str(key))]
    return [] if then == now else [f"{where}: {_brief(then)} became {_brief(now)}"]


def _brief(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _part(provenance: Mapping[str, Any], name: str) -> Any:
    return provenance.get("policy", {}).get(name, {})


def _versions(then: Mapping[str, Any], now: Mapping[str, Any], *names: str) -> str:
    """Of the named packages, those whose version is another one, in words."""
    old, new = then.get("versions", {}), now.get("versions", {})
    differing = [f"{name} {old.get(name)} became {new.get(name)}" for name in names if old.get(name) != new.get(name)]
    return f" ({', '.join(differing)})" if differing else ""


# ---------------------------------------------------------------------------------------------------------------- the file


def write_expectation(expectation: Expectation, path: Path) -> None:
    """Write the file, whole or not at all. Raises BagError."""
    prompts: dict[tuple[int, ...], int] = {}
    lines = []
    for frame in expectation.frames:
        evidence = frame.evidence
        plain: dict[str, Any] = {"index": frame.index, "stamp_ns": frame.stamp_ns, "instruction": frame.instruction,
                                 "token_ids": list(frame.token_ids), "action": _numbers(frame.action)}
        if evidence is not None:
            plain |= {"margins": [round(margin, 5) if math.isfinite(margin) else None for margin in evidence.margins],
                      "prompt": prompts.setdefault(evidence.input_ids, len(prompts)), "pixels": evidence.pixels}
        if frame.marks is not None:
            plain |= {"message": frame.marks.message, "picture": frame.marks.picture}
        if frame.fault:
            plain["fault"] = frame.fault
        if (commanded := expectation.commanded.get(frame.index)) is not None:
            plain["arm"] = {"sent": _numbers(commanded.sent), "rules": list(commanded.rules), "driver": commanded.driver,
                            "moved": _numbers(commanded.moved)}
        lines.append("  " + json.dumps(plain, allow_nan=False))
    head = {"format": FORMAT, "version": VERSION, **expectation.provenance, "prompts": [list(ids) for ids in prompts]}
    text = "{\n" + "".join(f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)},\n" for key, value in head.items())
    text += ' "frames": [\n' + ",\n".join(lines) + "\n ]\n}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise BagError(f"{path} cannot be written: {error}. Name a file in a folder of yours.") from error


def read_expectation(path: Path) -> Expectation:
    """The content of such a file. Raises ConfigurationError that says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no expectation {path}. Make it from a run that you trust: --write-expected {path}.") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"expectation {path} cannot be read: {error}. Make it again with --write-expected.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigurationError(f"{path} is no file with expected actions. Make one with --write-expected.")
    if content.get("version") != VERSION:
        raise ConfigurationError(f"expectation {path} has version {content.get('version')!r}, this program reads {VERSION}. "
                                 "Make it again with --write-expected.")
    try:
        prompts = [tuple(int(number) for number in ids) for ids in content.pop("prompts")]
        plain = content.pop("frames")
        frames = tuple(_frame(one, prompts) for one in plain)
        commanded = {one["index"]: _commanded(one["arm"]) for one in plain if "arm" in one}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigurationError(f"expectation {path} is damaged: {type(error).__name__}: {error}. Make it again with --write-expected.") \
            from error
    if not frames:
        raise ConfigurationError(f"expectation {path} holds no frame, so every recording would be as expected. Make it again.")
    return Expectation(frames, {key: value for key, value in content.items() if key not in ("format", "version")}, commanded)


def _frame(plain: Mapping[str, Any], prompts: Sequence[tuple[int, ...]]) -> ReplayedFrame:
    evidence = None
    if "pixels" in plain:
        margins = tuple(math.nan if margin is None else float(margin) for margin in plain["margins"])
        evidence = Evidence(prompts[plain["prompt"]], str(plain["pixels"]), margins)
    marks = Marks(str(plain["message"]), str(plain["picture"])) if "picture" in plain else None
    return ReplayedFrame(int(plain["index"]), int(plain["stamp_ns"]), str(plain["instruction"]), tuple(int(i) for i in plain["token_ids"]),
                         _array(plain["action"]), None, str(plain.get("fault", "")), {}, marks, evidence)


def _commanded(plain: Mapping[str, Any]) -> Commanded:
    return Commanded(_array(plain["sent"]), tuple(plain["rules"]), str(plain["driver"]), _array(plain["moved"], 6))


def _array(values: Sequence[float] | None, length: int = len(ACTION_NAMES)) -> FloatArray | None:
    if values is None:
        return None
    array = np.array(values, dtype=np.float64)
    if array.shape != (length,):
        raise ValueError(f"expected {length} numbers, found {array.size}")
    return array


def _numbers(values: FloatArray | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
