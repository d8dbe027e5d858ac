"""Action statistics of a data set: what turns the model's [-1, 1] into metres, radians and a gripper opening, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openvla_ros.contract import FloatArray
from openvla_ros.errors import CheckpointError, UnknownStatistics

TRAINING_EPSILON = 1e-8
"""Added to the range when training data is normalised, as the released data loader does; never when un-normalising."""


@dataclass(frozen=True)
class ActionStatistics:
    """1st and 99th percentile of each action dimension over a data set.

    q01, q99: [D], metric units. mask: [D], where false the model's value is the action itself (the gripper of the released
    models). D is 7 for one arm, other lengths for other embodiments.
    """

    key: str
    q01: FloatArray
    q99: FloatArray
    mask: npt.NDArray[np.bool_]

    @property
    def length(self) -> int:
        """Numbers per action, so also tokens per action."""
        return len(self.q01)

    def to_metric(self, normalized: FloatArray) -> FloatArray:
        """[..., D] in [-1, 1] -> [..., D] in metric units (float64)."""
        metric = 0.5 * (np.asarray(normalized, dtype=np.float64) + 1.0) * (self.q99 - self.q01) + self.q01
        return np.where(self.mask, metric, normalized)

    def to_normalized(self, metric: FloatArray) -> FloatArray:
        """[..., D] metric -> [..., D] in [-1, 1]; beyond the percentiles it is clipped, as training does. Unmasked: unchanged.

        A dimension without any range (q01 equals q99) becomes 0.
        """
        metric = np.asarray(metric, dtype=np.float64)
        scaled = np.clip(2.0 * (metric - self.q01) / (self.q99 - self.q01 + TRAINING_EPSILON) - 1.0, -1.0, 1.0)
        return np.where(self.mask, np.where(self.q99 > self.q01, scaled, 0.0), metric)


def read_statistics(folder: Path, configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """All statistics of a checkpoint, still unchecked: data set name -> its entry.

    `dataset_statistics.json` replaces `norm_stats` of config.json as a whole: fine-tuning writes its own data set there
    and leaves the base model's in config.json. Raises CheckpointError if there is neither.
    """
    path = folder / "dataset_statistics.json"
    if path.is_file():
        try:
            statistics = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}. Copy it again from where the model was trained.") from error
    else:
        statistics = configuration.get("norm_stats")
    if not isinstance(statistics, dict) or not statistics:
        raise CheckpointError(f"{folder} has no action statistics: neither dataset_statistics.json nor norm_stats in config.json. "
                              "Without them the model's output has no units. A base VLM has none; take a model trained on actions.")
    return statistics


def only_key(checkpoint: str) -> str:
    """The statistics key of a checkpoint folder that has just one; "" for several, or if `checkpoint` is no such folder.

    Raises CheckpointError for an unreadable config.json.
    """
    configuration = Path(checkpoint).expanduser() / "config.json"
    if not configuration.is_file():
        return ""
    try:
        content = json.loads(configuration.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{configuration} cannot be read: {error}. Copy the checkpoint again.") from error
    keys = list(read_statistics(configuration.parent, content))
    return str(keys[0]) if len(keys) == 1 else ""


def choose_statistics(statistics: Mapping[str, Any], key: str | None) -> ActionStatistics:
    """The entry under `key`; None or empty only if there is exactly one. Raises UnknownStatistics, CheckpointError."""
    known = ", ".join(sorted(statistics))
    if not key:
        if len(statistics) != 1:
            raise UnknownStatistics(f"the checkpoint has action statistics of {len(statistics)} data sets, so unnorm_key must name one of "
                                    f"them: {known}. A WidowX in BridgeData conventions needs bridge_orig.")
        key = next(iter(statistics))
    if key not in statistics:
        raise UnknownStatistics(f"the checkpoint has no action statistics {key!r}; it has {known}. Set unnorm_key to one of them.")
    return check_statistics(key, statistics[key])


def check_statistics(key: str, entry: Any) -> ActionStatistics:
    """One entry `{"action": {"q01": [D], "q99": [D], "mask": [D]}}`, judged. mask is optional: all true. Raises CheckpointError."""
    action = entry.get("action") if isinstance(entry, dict) else None
    if not isinstance(action, dict) or "q01" not in action or "q99" not in action:
        raise CheckpointError(f"action statistics {key!r} lack action.q01 or action.q99. Write them as the released models do.")
    try:
        q01, q99 = (np.array(action[name], dtype=np.float64) for name in ("q01", "q99"))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"action statistics {key!r}: q01 and q99 must be lists of numbers ({error}).") from error
    mask = action["mask"] if action.get("mask") is not None else [True] * q01.size
    lengths = {"q01": q01.shape, "q99": q99.shape, "mask": np.shape(mask)}
    if q01.ndim != 1 or q01.size == 0 or len(set(lengths.values())) != 1:
        raise CheckpointError(f"action statistics {key!r}: the shapes of q01, q99 and mask are "
                              f"{', '.join(str(list(shape)) for shape in lengths.values())}, expected three equal lists.")
    if not all(isinstance(value, bool) for value in mask):
        raise CheckpointError(f"action statistics {key!r}: mask is {mask}, expected true and false only.")
    if not (np.isfinite(q01).all() and np.isfinite(q99).all()):
        raise CheckpointError(f"action statistics {key!r} hold NaN or infinity. Compute them again from clean data.")
    if (q99 < q01).any():
        raise CheckpointError(f"action statistics {key!r}: q99 is below q01 in dimension {int(np.argmax(q99 < q01))}. "
                              "They are swapped or damaged.")
    q01.flags.writeable = q99.flags.writeable = False
    return ActionStatistics(key, q01, q99, np.array(mask, dtype=np.bool_))
