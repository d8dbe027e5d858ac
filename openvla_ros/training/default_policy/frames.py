"""Labelled camera frames on disk: written once per collection and process, read as one set through memory maps.

Pixels are uint8, so a set larger than the memory still trains. A collection counts as soon as its `.npz` is there, which is
written last: what a killed process left unfinished is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from openvla_ros.contract import ByteArray
from openvla_ros.training.loop import write_whole

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known about N frames, none of which the policy sees. Positions [m] in the frame of the arm's base, NaN where absent.

    positions_m: [N, entities, 3] of `network.ENTITIES`. places: [N, entities, 2] column and row of its pixel. opening: [N].
    held: [N] index of the held colour, -1 for none. actions: [N, kinds, colours, 4] dx, dy, dz [m] and gripper of
    the expert for every task.
    """

    positions_m: Float32Array
    places: Float32Array
    opening: Float32Array
    held: npt.NDArray[np.int64]
    actions: Float32Array

    def __len__(self) -> int:
        return len(self.held)


def save_frames(folder: Path, name: str, pictures: Sequence[ByteArray], truth: Truth) -> None:
    """Write one collection; it is either whole or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{name}.npy.unfinished"
    with unfinished.open("wb") as file:
        np.save(file, np.stack(pictures))
    unfinished.replace(folder / f"{name}.npy")
    packed = folder / f".{name}.npz.packed"
    with packed.open("wb") as file:
        np.savez(file, **{field.name: getattr(truth, field.name) for field in fields(Truth)})
    write_whole(folder / f"{name}.npz", packed.read_bytes())
    packed.unlink()


def has_frames(folder: Path, name: str) -> bool:
    """Whether the collection is there, whole."""
    return (folder / f"{name}.npz").is_file()


class FrameSet:
    """Several collections as one: N frames in the order of the names."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.pictures = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in names]
        parts = [load_truth(folder / f"{name}.npz") for name in names]
        self.truth = Truth(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Truth)})
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self.truth)

    def picture(self, index: int) -> ByteArray:
        """[H, W, 3] uint8, a view of the file."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.pictures[part][index - (self.ends[part - 1] if part else 0)]  # type: ignore[no-any-return]


def load_truth(path: Path) -> Truth:
    """What `save_frames` wrote."""
    with np.load(path) as stored:
        return Truth(**{field.name: stored[field.name] for field in fields(Truth)})
