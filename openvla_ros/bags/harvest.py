"""Recordings in, a dataset of episodes out (`episodes.py` says how it lies on disk). A killed run leaves nothing that looks whole.

The unit of work is one recording. What is done is kept: the same command goes on where a killed one ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from openvla_ros import __version__
from openvla_ros.bags.episodes import DATASET, DRIVERS, FORMAT, LEFT_OUT, PART, ROW, STATISTICS, VERSION, Episode, file_sha, read_json
from openvla_ros.bags.read import SECOND_NS, Recording
from openvla_ros.bags.steps import Ledger, LeftOut, Mark, Step, StepSettings, picture_topic, steps
from openvla_ros.contract import ACTION_NAMES, FloatArray
from openvla_ros.errors import BagError, ConfigurationError

UNFINISHED = ".unfinished-"
SHARD_BYTES = 1 << 30
MASK = (True,) * 6 + (False,)
"""Dimensions that training normalises: all but the gripper, as OpenVLA does for these seven numbers."""

DRIVER_NUMBERS = {name: number for number, name in DRIVERS.items()}


@dataclass(frozen=True)
class EpisodeRules:
    """Where episodes begin and end. Raises ConfigurationError.

    gap_s: longest time between the beginnings of two steps of one episode. min_steps: shorter episodes are left out.
    success: the mark of all episodes; None: only what was recorded. shard_bytes: a new file begins at the first episode after that.
    """

    gap_s: float = 0.8
    min_steps: int = 2
    success: bool | None = None
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if not (0.05 <= self.gap_s <= 3600.0 and 1 <= self.min_steps <= 10_000 and self.shard_bytes >= 1):
            raise ConfigurationError(f"gap is {self.gap_s} s and min_steps {self.min_steps}; expected 0.05 to 3600 s and 1 to 10000 steps.")


class PartSummary(NamedTuple):
    """What came of one recording."""

    recording: str
    folder: str
    episodes: int
    rows: int
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    reused: bool


class DatasetSummary(NamedTuple):
    """What came of all of them. failed: recording -> why."""

    folder: Path
    parts: tuple[PartSummary, ...]
    failed: Mapping[str, str]
    episodes: int
    rows: int
    bytes: int



def part_name(path: Path, step_settings: StepSettings, rules: EpisodeRules) -> str:
    """Folder of a recording's part: equal for the same file with the same settings and release. Raises BagError."""
    if not path.exists():
        raise BagError(f"there is no recording at {path}. Name a rosbag2 folder, a .mcap or a .db3 file.")
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise BagError(f"recording {path} cannot be read: {error}. Look at its path and permissions.") from error
    name = path.resolve().name
    key = repr((VERSION, __version__, name, seen, sorted(asdict(step_settings).items()), sorted(asdict(rules).items())))
    return f"{''.join(letter if letter.isalnum() or letter in '._-' else '_' for letter in name)}-{_sha(key.encode())[:12]}"


def write_part(path: Path, dataset: Path, step_settings: StepSettings, rules: EpisodeRules,
               on_picture: Callable[[], None] | None = None) -> PartSummary:
    """Cut one recording into episodes and put them into `dataset` as a part, whole or not at all; a part that is there is kept.

    The unit of work: it knows nothing of other recordings, and its arguments can be sent to another process (but on_picture).
    Raises BagError.
    """
    final = dataset / part_name(path, step_settings, rules)
    if (final / PART).is_file():
        return _summary(read_json(final / PART), final.name, reused=True)
    try:
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=dataset, ignore_cleanup_errors=True) as unfinished:
            folder = Path(unfinished) / "part"
            folder.mkdir()
            content = _cut(path, folder, step_settings, rules, on_picture)
            _write_json(folder / PART, content)
            _sync(folder)
            folder.rename(final)
            _sync(dataset)
    except OSError as error:
        raise BagError(f"episodes of {path} cannot be written to {dataset}: {error}. Make room, or choose another --output.") from error
    return _summary(content, final.name, reused=False)


def _cut(path: Path, folder: Path, step_settings: StepSettings, rules: EpisodeRules,
         on_picture: Callable[[], None] | None) -> dict[str, Any]:
    """The files of a part but part.json, whose content is returned."""
    ledger = Ledger()
    with Recording(path) as recording:
        topic = picture_topic(recording, step_settings)
        writer = _Writer(folder, recording.name, topic.name, rules, ledger)
        for found in steps(recording, step_settings, ledger):
            if isinstance(found, Step):
                writer.add(found)
            elif isinstance(found, Mark):
                writer.mark(found.success)
            elif on_picture is not None:
                on_picture()
        writer.finish()
        return {"recording": recording.name, "path": str(path.resolve()), "image_topic": topic.name, "pictures": topic.count,
                "notes": list(recording.notes), "settings": {**asdict(step_settings), **asdict(rules)},
                "episodes": [{name: value for name, value in asdict(episode).items() if name != "part"} for episode in writer.episodes],
                "shards": writer.shards, "left_out": [asdict(entry) for entry in ledger.entries()]}


class _Writer:
    """Steps in, shards out. An episode lies in one shard; one that is too short is taken back."""

    def __init__(self, folder: Path, recording: str, picture_topic: str, rules: EpisodeRules, ledger: Ledger) -> None:
        self._folder, self._recording, self._topic, self._rules, self._ledger = folder, recording, picture_topic, rules, ledger
        self.episodes: list[Episode] = []
        self.shards: list[dict[str, Any]] = []
        self._rows: list[tuple[Any, ...]] = []  # of the shard
        self._episode: list[Step] = []  # of the open episode, without their pictures
        self._success: bool | None = None
        self._frames: BinaryIO | None = None
        self._size = 0

    def add(self, step: Step) -> None:
        """The next step of the recording."""
        if self._episode and self._begins_anew(self._episode[-1], step):
            self._end()
        if self._frames is None:
            self._frames = (self._folder / f"frames-{len(self.shards):05d}.bin").open("w+b")
            self._size = 0
        self._rows.append(self._row(step))
        self._frames.write(step.picture)
        self._size += len(step.picture)
        self._episode.append(replace(step, picture=b""))

    def mark(self, success: bool) -> None:
        """The operator's verdict ends the episode; after its end it counts for the newest one."""
        if self._episode:
            self._success = success
            self._end()
        elif self.episodes:
            self.episodes[-1] = replace(self.episodes[-1], success=success)

    def finish(self) -> None:
        """After the last step."""
        self._end()
        self._close_shard()

    def _begins_anew(self, before: Step, step: Step) -> bool:
        waited_ns = step.begin_ns - before.begin_ns
        return (step.instruction != before.instruction or step.driver != before.driver
                or not 0 < waited_ns <= self._rules.gap_s * SECOND_NS)

    def _row(self, step: Step) -> tuple[Any, ...]:
        return (len(self.episodes), len(self._episode), step.frame_index, step.frame_stamp_ns, step.begin_ns, self._size,
                len(step.picture), step.height, step.width, DRIVER_NUMBERS[step.driver], step.intervention, step.action, step.proposal,
                step.position_m, step.quaternion_xyzw, step.opening)

    def _end(self) -> None:
        """Close the open episode."""
        found, self._episode = self._episode, []
        success, self._success = self._success if self._success is not None else self._rules.success, None
        if not found:
            return
        first_row = len(self._rows) - len(found)
        if len(found) < self._rules.min_steps:
            assert self._frames is not None
            self._size = int(self._rows[first_row][ROW.names.index("offset")])  # type: ignore[union-attr]
            self._frames.seek(self._size)
            self._frames.truncate()
            del self._rows[first_row:]
            for step in found:
                self._ledger.put("picture", self._topic, f"its episode has fewer than {self._rules.min_steps} steps", step.frame_index)
            return
        self.episodes.append(Episode(
            self._recording, found[0].instruction, found[0].driver, any(step.intervention for step in found), success, len(found),
            found[0].frame_stamp_ns, found[-1].frame_stamp_ns, len(self.shards), first_row))
        if self._size >= self._rules.shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._frames is None:
            return
        if self._rows:
            self._frames.flush()
            os.fsync(self._frames.fileno())
            number = len(self.shards)
            rows, frames = self._folder / f"rows-{number:05d}.npy", self._folder / f"frames-{number:05d}.bin"
            with rows.open("wb") as file:
                np.save(file, np.array(self._rows, dtype=ROW), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            self.shards.append({"rows": len(self._rows), **{
                name: {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha(path)}
                for name, path in (("row_file", rows), ("frame_file", frames))}})
            self._frames.close()
        else:
            self._frames.close()
            Path(self._frames.name).unlink()
        self._frames, self._rows = None, []


def write_dataset(paths: Sequence[Path], folder: Path, step_settings: StepSettings, rules: EpisodeRules, key: str = "",
                  force: bool = False, workers: int = 1, on_picture: Callable[[], None] | None = None,
                  on_part: Callable[[Path], None] | None = None) -> DatasetSummary:
    """Make `folder` the dataset of exactly these recordings.

    Recordings whose parts are there already (an earlier run that was killed, or an earlier dataset) are not read again. key: the name of
    the statistics; empty: the folder's. force: replace another dataset there; a folder that is none is never replaced. workers: so many
    recordings at a time, each in a process of its own if there are several. on_picture, on_part: called after each picture (only with
    one worker) and each recording.

    A recording that fails is named in the summary and in dataset.json, and the others go on. Raises BagError when none gave an episode,
    when another run writes to the folder, or when it cannot be written.
    """
    with _locked(folder):
        before = read_json(folder / DATASET) if (folder / DATASET).is_file() else None
        foreign = [entry.name for entry in folder.iterdir() if not _is_ours(entry)]
        if foreign and before is None:
            raise BagError(f"{folder} is no dataset: it holds {', '.join(sorted(foreign)[:5])}. Choose another --output.")
        if before is not None and not force and not _same(before, paths, step_settings, rules):
            held = ", ".join(part["recording"] for part in before["parts"])
            raise BagError(f"{folder} holds another dataset, of {held[:300]}, or one that was made with other options. "
                           "Use --force to replace it, or another --output.")
        found = _attempt_all(list(dict.fromkeys(paths)), folder, step_settings, rules, workers, on_picture, on_part)
        failed = {str(path): part for path, part in found.items() if isinstance(part, str)}
        parts = list({part.folder: part for part in found.values() if isinstance(part, PartSummary)}.values())  # one name twice: once
        if not any(part.rows for part in parts):
            reasons = [f"{path}: {why}" for path, why in failed.items()] + [
                f"{part.recording}: {entry.count} {entry.kind}s: {entry.reason}" for part in parts for entry in part.left_out[:4]]
            raise BagError("no episode came out. " + " | ".join(reasons))
        try:
            return _finish(folder, parts, failed, key or folder.resolve().name)
        except OSError as error:
            raise BagError(f"the dataset cannot be written to {folder}: {error}. Make room, or choose another --output.") from error


def attempt(path: Path, folder: Path, step_settings: StepSettings, rules: EpisodeRules,
            on_picture: Callable[[], None] | None = None) -> PartSummary | str:
    """`write_part`, or why it failed."""
    try:
        return write_part(path, folder, step_settings, rules, on_picture)
    except BagError as error:
        return str(error)


def _attempt_all(paths: Sequence[Path], folder: Path, step_settings: StepSettings, rules: EpisodeRules, workers: int,
                 on_picture: Callable[[], None] | None, on_part: Callable[[Path], None] | None) -> dict[Path, PartSummary | str]:
    """`attempt` for each recording, in their order. A worker that dies takes nothing with it but the recording it died of."""
    done = on_part or (lambda path: None)
    found: dict[Path, PartSummary | str] = {}
    if workers <= 1:
        for path in paths:
            found[path] = attempt(path, folder, step_settings, rules, on_picture)
            done(path)
        return found
    interrupted = list(paths)
    for alone in (False, True):  # who was running when a worker died is tried again, each in a pool of its own
        groups, interrupted = [[path] for path in interrupted] if alone else [interrupted], []
        for group in groups:
            with ProcessPoolExecutor(min(workers, len(group)) or 1, get_context("spawn")) as pool:
                futures = {pool.submit(attempt, path, folder, step_settings, rules): path for path in group}
                for future in as_completed(futures):
                    path = futures[future]
                    try:
                        found[path] = future.result()
                        done(path)
                    except BrokenProcessPool:
                        interrupted.append(path)
    found.update(dict.fromkeys(interrupted, "its worker process died twice: out of memory, or killed. Try it alone with --workers 1."))
    return {path: found[path] for path in paths}


def _finish(folder: Path, parts: Sequence[PartSummary], failed: Mapping[str, str], key: str) -> DatasetSummary:
    """Everything that is said about all parts; dataset.json is the last word."""
    contents = [read_json(folder / part.folder / PART) for part in parts]
    actions = np.concatenate([np.load(folder / part.folder / shard["row_file"]["file"])["action"]
                              for part, content in zip(parts, contents, strict=True) for shard in content["shards"]])
    episodes = sum(part.episodes for part in parts)
    size = sum(shard[name]["bytes"] for content in contents for shard in content["shards"] for name in ("row_file", "frame_file"))
    (folder / DATASET).unlink(missing_ok=True)  # a dataset that is replaced must not be taken for whole beside new statistics
    _write_json(folder / STATISTICS, {key: statistics(actions, episodes)})
    _write_json(folder / LEFT_OUT, {"failed": dict(failed), "recordings": [
        {"recording": part.recording, "notes": list(part.notes), "left_out": [asdict(entry) for entry in part.left_out]}
        for part in parts]})
    summary = DatasetSummary(folder, tuple(parts), dict(failed), episodes, len(actions), size)
    _write_json(folder / DATASET, {
        "format": FORMAT, "version": VERSION, "statistics_key": key, "action_names": list(ACTION_NAMES), "episodes": episodes,
        "rows": len(actions), "bytes": size, "row_dtype": [list(entry) for entry in ROW.descr], "failed": dict(failed),
        "parts": [{"folder": part.folder, "recording": part.recording, "episodes": part.episodes, "rows": part.rows} for part in parts]})
    named = {part.folder for part in parts}
    for entry in folder.iterdir():  # parts of a dataset that was replaced
        if entry.is_dir() and entry.name not in named and (entry / PART).is_file():
            shutil.rmtree(entry)
    return summary


def statistics(actions: FloatArray, episodes: int) -> dict[str, Any]:
    """Statistics of [n, 7] actions as OpenVLA's data loader computes them: of float32 numbers, quantiles by linear interpolation."""
    single = np.asarray(actions, np.float32)
    found = {"mean": single.mean(0), "std": single.std(0), "max": single.max(0), "min": single.min(0),
             "q01": np.quantile(single, 0.01, axis=0), "q99": np.quantile(single, 0.99, axis=0)}
    return {
        "action": {**{name: values.tolist() for name, values in found.items()}, "mask": list(MASK)},
        "proprio": {name: [0.0] * len(ACTION_NAMES) for name in found},  # as in the release: not used
        "num_transitions": len(single), "num_trajectories": episodes}



def _same(before: Mapping[str, Any], paths: Sequence[Path], step_settings: StepSettings, rules: EpisodeRules) -> bool:
    """Whether the dataset there is of some of these recordings: then going on loses nothing."""
    names = set()
    for path in paths:
        with suppress(BagError):
            names.add(part_name(path, step_settings, rules))
    return {part["folder"] for part in before["parts"]} <= names


def _is_ours(entry: Path) -> bool:
    return entry.name in (DATASET, STATISTICS, LEFT_OUT, ".lock") or entry.name.startswith(UNFINISHED) or (entry / PART).is_file()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One run at a time; what killed runs left is swept away. Raises BagError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise BagError(f"the dataset cannot be written to {folder}: {error}. Choose another --output.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BagError(f"another run writes to {folder} now. Wait for it, or choose another --output.") from error
        for left in folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _summary(content: Mapping[str, Any], folder: str, reused: bool) -> PartSummary:
    left_out = tuple(LeftOut(entry["kind"], entry["topic"], entry["reason"], entry["count"],
                             tuple((first, last) for first, last in entry["ranges"])) for entry in content["left_out"])
    return PartSummary(content["recording"], folder, len(content["episodes"]), sum(episode["rows"] for episode in content["episodes"]),
                       left_out, tuple(content["notes"]), reused)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all, also when the power fails."""
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Renames in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
