"""A suite: a folder of small YAML files, each of which says what one recording is expected to give. See `KEYS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from openvla_ros.bags.expect import Tolerance
from openvla_ros.errors import ConfigurationError
from openvla_ros.policy.catalogue import PolicySettings, read_profile
from openvla_ros.regression.job import FAILED, Job, Result

ENDING = ".replay.yaml"
"""How the names of these files end. Other YAML files, such as a recording's own metadata.yaml, are left alone."""

KEYS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "bag": ((str,), "the recording: rosbag2 folder, .mcap or .db3 file"),
    "checkpoint": ((str,), "checkpoint folder, hub name, 'default' or 'scripted'"),
    "policy": ((str,), "policy profile: a name in config/policies or a .yaml file"),
    "settings": ((dict,), "settings of the policy that override its profile, such as {dtype: float32, device: cpu}"),
    "expected": ((str,), "file with the expected actions"),
    "through": ((str,), "policy, or command: the pilot with its safety rules too"),
    "robot": ((str,), "robot profile for `through: command`"),
    "latency_s": ((int, float), "assumed time from a picture to its answer, for `through: command`"),
    "instruction": ((str,), "instead of the recorded instruction"),
    "image_topic": ((str,), "camera, where the recording has several"),
    "instruction_topic": ((str,), "where the recording has several"),
    "stride": ((int,), "take every so many-th frame"),
    "limit": ((int,), "end after so many frames, 0 for all"),
    "batch": ((int,), "so many frames at once"),
    "tolerances": ((dict,), "see TOLERANCES"),
}
"""What a file may say: key -> types, meaning. `bag` and `expected` are needed. Paths are relative to the file."""

OF_THE_JOB = ("through", "robot", "latency_s", "instruction", "image_topic", "instruction_topic", "stride", "limit", "batch")
"""Keys that a job has under the same name."""

TOLERANCES: Mapping[str, str] = {
    "margin": "bound on the margin above which ids must be equal; left out: by the dtype of the expectation",
    "translation_m": "largest difference of dx, dy, dz in a frame whose ids flipped [m]",
    "rotation_rad": "the same for droll, dpitch, dyaw [rad]",
    "gripper": "the same for the gripper [0..1]",
    "flips": "largest share of frames that may flip, 0..1",
}


def find_suite(folder: Path) -> list[Path]:
    """The files of a suite, in the order of their names, subfolders too. Raises ConfigurationError when there is none."""
    if not folder.is_dir():
        raise ConfigurationError(f"there is no suite folder {folder}. Name a folder with files that end in {ENDING}.")
    found = sorted(folder.rglob(f"*{ENDING}"))
    if not found:
        raise ConfigurationError(f"{folder} holds no file that ends in {ENDING}, so it is no suite.")
    return found


def read_suite(folder: Path, output: Path, overrides: Mapping[str, Any] | None = None) -> tuple[list[Job], list[Result]]:
    """The jobs of a suite, and a failed result for each file that cannot be read. The arguments are those of `read_entry`.

    Raises ConfigurationError when there is no such file at all.
    """
    jobs, unread = list[Job](), list[Result]()
    for path in find_suite(folder):
        try:
            jobs.append(read_entry(path, output, overrides))
        except ConfigurationError as error:
            unread.append(Result(path.name.removesuffix(ENDING), FAILED, error=str(error)))
    return jobs, unread


def read_entry(path: Path, output: Path, overrides: Mapping[str, Any] | None = None) -> Job:
    """The job of one file. output: folder for pictures of failures. overrides: settings of the policy that win over the file's.

    Raises ConfigurationError that names the file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    try:
        return _job(_checked(content), path, output, overrides or {})
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _checked(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigurationError(f"it holds {type(content).__name__}, expected a mapping with {', '.join(KEYS)}.")
    if unknown := sorted(str(key) for key in content if key not in KEYS):
        raise ConfigurationError(f"unknown keys {', '.join(unknown)}; taken are {', '.join(KEYS)}.")
    for key, value in content.items():
        types, meaning = KEYS[key]
        if not isinstance(value, types) or isinstance(value, bool):
            raise ConfigurationError(f"{key} is {value!r}, expected {' or '.join(kind.__name__ for kind in types)}: {meaning}.")
    if missing := [key for key in ("bag", "expected") if not content.get(key)]:
        raise ConfigurationError(f"it lacks {' and '.join(missing)}.")
    if not (content.get("checkpoint") or content.get("policy")):
        raise ConfigurationError("it names neither a checkpoint nor a policy.")
    return content


def _job(content: dict[str, Any], path: Path, output: Path, overrides: Mapping[str, Any]) -> Job:
    settings = content.get("settings", {})
    known = {field.name for field in fields(PolicySettings)}
    if unknown := sorted(str(key) for key in settings if key not in known):
        raise ConfigurationError(f"unknown settings {', '.join(unknown)}; taken are {', '.join(sorted(known))}.")
    if "checkpoint" in content:
        settings = {"checkpoint": _beside(path, content["checkpoint"]), **settings}
    profile = content.get("policy", "openvla-7b")
    taken: dict[str, Any] = {key: content[key] for key in OF_THE_JOB if key in content}
    if str(taken.get("robot", "")).endswith(".yaml"):
        taken["robot"] = _beside(path, taken["robot"])
    name = path.name.removesuffix(ENDING)
    return Job(name, path.parent / content["bag"], read_profile(_beside(path, profile) if profile.endswith(".yaml") else profile,
                                                                **{**settings, **overrides}),
               output / name, expect=path.parent / content["expected"], tolerance=_tolerance(content.get("tolerances", {})), report=False,
               **taken)


def _tolerance(content: Mapping[str, Any]) -> Tolerance:
    if unknown := sorted(str(key) for key in content if key not in TOLERANCES):
        raise ConfigurationError(f"unknown tolerances {', '.join(unknown)}; taken are {', '.join(TOLERANCES)}.")
    for key, value in content.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ConfigurationError(f"tolerance {key} is {value!r}, expected a number: {TOLERANCES[key]}.")
    usual = Tolerance()
    move, turn = content.get("translation_m", usual.action[0]), content.get("rotation_rad", usual.action[3])
    return replace(usual, margin=content.get("margin"), flips=content.get("flips", usual.flips),
                   action=(*(move,) * 3, *(turn,) * 3, content.get("gripper", usual.action[6])))


def _beside(path: Path, name: str) -> str:
    """A path that is relative to the file, where something lies there; else the word as it is, such as a hub name."""
    beside = path.parent / Path(name).expanduser()
    return str(beside) if beside.exists() else name
