"""Episodes on disk: what a dataset looks like, and the reader for training. `harvest.py` makes one out of recordings.

    DIR/dataset.json               what this is, written last: a folder without it is unfinished, and `read` refuses it
    DIR/dataset_statistics.json    action statistics as OpenVLA's training writes them; may be put beside a checkpoint
    DIR/left_out.json              what of the recordings did not become a row, with the reason
    DIR/<recording>-<digest>/      one part per recording, whole or absent
        part.json                  its source, its episodes, its shards with sizes and SHA-256, what was left out
        rows-00000.npy             one row per step, dtype ROW, plain numpy: may be memory-mapped
        frames-00000.bin           the pictures of these rows, JPEG or PNG files one after the other, at ROW's offset and length

A picture is one read at a known place, rows are one memory map, and nothing is decoded that is not looked at.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openvla_ros.contract import ByteArray, FloatArray
from openvla_ros.errors import BagError
from openvla_ros.observation.image import decode_compressed

FORMAT, VERSION = "openvla_ros episodes", 1
DATASET, STATISTICS, LEFT_OUT, PART = "dataset.json", "dataset_statistics.json", "left_out.json", "part.json"
DRIVERS = {0: "HOLD", 1: "POLICY", 2: "HUMAN", 3: "STOPPED", 255: ""}
"""ROW's numbers of drivers: those of CommandReport, and 255 for recorded actions of which nobody knows who made them."""

ROW = np.dtype([
    ("episode", "<u4"),  # within the part, from 0
    ("step", "<u4"),  # within the episode, from 0
    ("frame_index", "<u4"),  # of the image messages of the recording, from 0
    ("frame_stamp_ns", "<i8"),  # when the camera saw it
    ("begin_ns", "<i8"),  # when the step began
    ("offset", "<u8"), ("length", "<u4"),  # of the picture's file in frames-*.bin [bytes]
    ("height", "<u2"), ("width", "<u2"),  # of the picture [px]
    ("driver", "<u1"),  # one of DRIVERS
    ("intervention", "?"),  # a human drove in place of a running policy
    ("action", "<f8", 7),  # dx dy dz [m], droll dpitch dyaw [rad], gripper 0 closed .. 1 open: what was sent, or recorded
    ("proposal", "<f8", 7),  # what the policy wanted; NaN where it is not known
    ("position_m", "<f8", 3), ("quaternion_xyzw", "<f8", 4), ("opening", "<f8"),  # measured state of the arm; NaN where it is not known
])
"""One step. A new field needs a new VERSION."""


@dataclass(frozen=True)
class Episode:
    """One episode of a dataset. success: None where nobody said."""

    recording: str
    instruction: str
    driver: str  # POLICY, HUMAN, or empty: a recorded action
    intervention: bool  # in any of its steps
    success: bool | None
    rows: int
    start_ns: int  # stamp of its first picture
    end_ns: int  # stamp of its last picture
    shard: int
    first_row: int  # within its shard
    part: str = ""


@dataclass(frozen=True)
class Row:
    """One step as training reads it. Arrays are copies."""

    episode: Episode
    step: int
    last: bool
    file: bytes  # the picture, a JPEG or PNG file
    action: FloatArray  # [7]
    proposal: FloatArray | None  # [7]
    driver: str
    intervention: bool
    frame_stamp_ns: int
    begin_ns: int
    position_m: FloatArray | None  # [3]
    quaternion_xyzw: FloatArray | None  # [4]
    opening: float | None

    @property
    def instruction(self) -> str:
        """What the episode is about."""
        return self.episode.instruction

    def picture(self) -> ByteArray:
        """uint8 [H, W, 3], red first; decoded as everywhere in the package."""
        return decode_compressed(self.file, "")



class Dataset:
    """A finished dataset, for random access. Files are mapped on first use; it can be sent to other processes, which map their own."""

    def __init__(self, folder: Path | str) -> None:
        """Looks at every file's size. Raises BagError for a folder that is no dataset, is unfinished, or lacks a byte."""
        self.folder = Path(folder)
        if not (self.folder / DATASET).is_file():
            raise BagError(f"{self.folder} is no finished dataset: it has no {DATASET}. Run 'openvla-ros episodes' with it as --output "
                           "again; what is there already is kept.")
        content = read_json(self.folder / DATASET)
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            raise BagError(f"{self.folder} is {content.get('format')!r} version {content.get('version')!r}; this release reads {FORMAT!r} "
                           f"version {VERSION}. Make it again from its recordings.")
        self.statistics: dict[str, Any] = read_json(self.folder / STATISTICS)
        self.episodes: list[Episode] = []
        self._shards: list[tuple[Path, Path]] = []  # rows, frames
        shard_of_episode: list[int] = []
        for entry in content["parts"]:
            part = read_json(self.folder / entry["folder"] / PART)
            shard_of_episode += [len(self._shards) + episode["shard"] for episode in part["episodes"]]
            self.episodes += [Episode(**episode, part=entry["folder"]) for episode in part["episodes"]]
            self._shards += [self._check(entry["folder"], shard) for shard in part["shards"]]
        self._shard_of_episode = shard_of_episode
        self._ends = np.cumsum([episode.rows for episode in self.episodes])
        self._open: dict[int, tuple[npt.NDArray[np.void], mmap.mmap]] = {}

    def __len__(self) -> int:
        """How many rows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> Row:
        """A row by its number; rows of an episode follow each other. Raises IndexError."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        place = int(np.searchsorted(self._ends, number, side="right"))
        return self._row(place, number - int(self._ends[place] - self.episodes[place].rows))

    def __iter__(self) -> Iterator[Row]:
        return (self._row(place, step) for place, episode in enumerate(self.episodes) for step in range(episode.rows))

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.folder,)

    def table(self, place: int) -> npt.NDArray[np.void]:
        """All rows of the episode at that place of `episodes`, dtype ROW, as a view of the file."""
        episode = self.episodes[place]
        return self._mapped(self._shard_of_episode[place])[0][episode.first_row:episode.first_row + episode.rows]

    def _row(self, place: int, step: int) -> Row:
        episode = self.episodes[place]
        rows, frames = self._mapped(self._shard_of_episode[place])
        row = rows[episode.first_row + step]
        start = int(row["offset"])
        return Row(episode, step, step == episode.rows - 1, frames[start:start + int(row["length"])], np.array(row["action"]),
                   _known(row["proposal"]), DRIVERS[int(row["driver"])], bool(row["intervention"]),
                   int(row["frame_stamp_ns"]), int(row["begin_ns"]), _known(row["position_m"]), _known(row["quaternion_xyzw"]),
                   float(row["opening"]) if np.isfinite(row["opening"]) else None)

    def _mapped(self, shard: int) -> tuple[npt.NDArray[np.void], mmap.mmap]:
        if shard not in self._open:
            rows, frames = self._shards[shard]
            with frames.open("rb") as file:
                self._open[shard] = np.load(rows, mmap_mode="r"), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._open[shard]

    def _check(self, folder: str, shard: Mapping[str, Any]) -> tuple[Path, Path]:
        paths = []
        for name in ("row_file", "frame_file"):
            path = self.folder / folder / shard[name]["file"]
            size = path.stat().st_size if path.is_file() else -1
            if size != shard[name]["bytes"]:
                raise BagError(f"{path} has {size} bytes, expected {shard[name]['bytes']}: it is truncated or missing. "
                               "Copy the dataset again.")
            paths.append(path)
        return paths[0], paths[1]


def read(folder: Path | str, wanted: Callable[[Episode], bool] | None = None) -> Iterator[Row]:
    """The rows of a dataset in order; wanted: only of episodes for which it is true. Raises BagError."""
    dataset = Dataset(folder)
    for place, episode in enumerate(dataset.episodes):
        if wanted is None or wanted(episode):
            yield from (dataset._row(place, step) for step in range(episode.rows))


def verify(folder: Path | str) -> None:
    """Read every byte of a dataset and compare with its digests. Raises BagError that names the first damaged file."""
    dataset = Dataset(folder)
    for part in dict.fromkeys(episode.part for episode in dataset.episodes):
        for shard in read_json(dataset.folder / part / PART)["shards"]:
            for name in ("row_file", "frame_file"):
                path = dataset.folder / part / shard[name]["file"]
                if file_sha(path) != shard[name]["sha256"]:
                    raise BagError(f"{path} is damaged: its SHA-256 is not the one that was written. Copy the dataset again.")


def _known(values: npt.NDArray[Any]) -> FloatArray | None:
    return np.array(values, np.float64) if np.isfinite(values).all() else None


def read_json(path: Path) -> dict[str, Any]:
    """One of the JSON files of a dataset. Raises BagError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BagError(f"{path} cannot be read: {error}. Copy the dataset again, or make it again from its recordings.") from error
    if not isinstance(content, dict):
        raise BagError(f"{path} holds {type(content).__name__}, expected an object. Make the dataset again from its recordings.")
    return content


def file_sha(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()
