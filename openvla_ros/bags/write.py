"""Serialised messages in, a rosbag2 recording (mcap) on disk out, readable up to the last flush whatever happens to this process.

The files hold whole records only, are flushed to the disk at each `flush`, and every file stands alone: it begins with the facts about
the recording, with the definitions of its types, and with what the latched topics said before.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from openvla_ros.bags.mcap_file import CHUNK_BYTES, COMPRESSIONS, FACTS, McapFile
from openvla_ros.bags.sample import SECOND_NS, Latched, Sample, Source, profiles
from openvla_ros.errors import BagError, ConfigurationError

METADATA_VERSION = 8  # the newest whose quality of service Humble reads too
RESERVE_BYTES = 8 * 1024 * 1024
STATE = f"{FACTS}.state"
"""The fact that says how a recording ended: "recording" until it did, then "finished" or the reason."""


@dataclass(frozen=True)
class WriteSettings:
    """How to write. A split of 0 is none. Raises ConfigurationError."""

    split_bytes: int = 0  # a file ends when it has grown to about this size
    split_s: float = 0.0  # a file ends when its messages span so much log time
    compression: str = "none"

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise ConfigurationError(f"compression is {self.compression!r}, expected one of {', '.join(COMPRESSIONS)}.")
        if not (self.split_bytes == 0 or self.split_bytes >= CHUNK_BYTES):
            raise ConfigurationError(f"files would be split at {self.split_bytes} bytes, expected 0 for never or at least {CHUNK_BYTES}.")
        if not (self.split_s == 0.0 or 1.0 <= self.split_s <= 1e6):
            raise ConfigurationError(f"files would be split at {self.split_s} s, expected 0 for never or 1 to 1000000.")


class BagWriter:
    """One recording while it is being written. One thread uses it.

    After an OSError from any of its functions only `rescue` may follow.
    """

    def __init__(self, folder: Path, settings: WriteSettings, facts: Mapping[str, str], latched: Latched | None = None,
                 distribution: str = "", create: Callable[[Path], int] | None = None) -> None:
        """Makes the folder, a first file and metadata.yaml. distribution: name of this ROS, such as jazzy.

        facts: texts about the recording, kept under their names. latched: what holds already. create: opens a new file for writing and
        gives its descriptor. Raises BagError when the folder exists or cannot be made.
        """
        make_folder(folder)
        self.folder, self._settings, self._distribution = folder, settings, distribution
        self._latched = latched if latched is not None else Latched()
        self._create = create or _create
        self._facts = dict(facts)
        self._state = "recording"
        self._channels: dict[tuple[str, str], Source] = {}  # each topic as it was when it was first heard: one quality for all files
        self._reserve = _Reserve(folder)
        self._files: list[McapFile] = []
        try:
            self._next_file()
            self.write_metadata()
        except OSError as error:
            self._discard()
            raise BagError(f"recording {folder} cannot be begun: {reason(error)}.") from error

    @property
    def messages(self) -> int:
        """How many were written, repeated ones included."""
        return sum(file.messages for file in self._files)

    @property
    def size(self) -> int:
        """Bytes of all files so far."""
        return sum(file.size for file in self._files)

    @property
    def span_s(self) -> float:
        """Log time from the first to the last message."""
        return max(0, self._end_ns - self._start_ns) / SECOND_NS if self.messages else 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Topic -> messages."""
        counts: dict[str, int] = {}
        for file in self._files:
            for (name, _), number in file.counts.items():
                counts[name] = counts.get(name, 0) + number
        return counts

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, in order."""
        return tuple(file.path.name for file in self._files)

    def write(self, sample: Sample) -> None:
        """Append a message; begins a new file before it when that is due. Raises OSError."""
        file = self._files[-1]
        if self._is_full(file, sample.log_ns):
            file.finish()
            file = self._next_file()
        if not file.messages:
            for earlier in self._latched.samples():
                file.write(self._as_first_heard(earlier.source), earlier._replace(log_ns=sample.log_ns))
        self._latched.remember(sample)
        file.write(self._as_first_heard(sample.source), sample)

    def flush(self) -> None:
        """Bring all of it onto the disk. Raises OSError."""
        self._files[-1].flush()

    def describe(self, facts: Mapping[str, str]) -> None:
        """Say facts that were learned meanwhile. Raises OSError."""
        if facts != self._facts:
            self._facts = dict(facts)
            self._files[-1].describe(self._facts)
            self.write_metadata()

    def close(self) -> None:
        """Finish the recording; one without any message is taken away again. Raises OSError."""
        if not self.messages:
            self._discard()
            return
        self._state = "finished"
        self._files[-1].finish()
        self._reserve.release()
        self.write_metadata()

    def rescue(self, why: str, facts: Mapping[str, str]) -> bool:
        """Finish as well as the disk allows after an OSError; never raises one. False where the last file stays without an index."""
        self._state, self._facts = why, dict(facts)
        self._reserve.release()
        if not self.messages:
            self._discard()
            return True
        finished = False
        with suppress(OSError):
            self._files[-1].finish()
            finished = True
        if not finished:
            self._files[-1].abandon()
            with suppress(OSError, BagError):
                self._files[-1].recount()
        with suppress(OSError):
            self.write_metadata()
        return finished

    def write_metadata(self) -> None:
        """Write metadata.yaml as it would be if the recording ended now. Raises OSError."""
        text = yaml.dump({"rosbag2_bagfile_information": self._metadata()}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        beside = self.folder / ".metadata.yaml.new"
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # before it replaces the older one: a power failure must not leave an empty file
        beside.replace(self.folder / "metadata.yaml")

    def _is_full(self, file: McapFile, log_ns: int) -> bool:
        if not file.messages:
            return False
        by_size = 0 < self._settings.split_bytes <= file.size
        return by_size or 0 < self._settings.split_s * SECOND_NS <= log_ns - file.start_ns

    def _as_first_heard(self, source: Source) -> Source:
        return self._channels.setdefault((source.name, source.kind), source)

    def _next_file(self) -> McapFile:
        path = self.folder / f"{self.folder.name}_{len(self._files)}.mcap"
        self._files.append(McapFile(path, self._create(path), COMPRESSIONS[self._settings.compression]))
        self._files[-1].describe(self._facts)
        self._files[-1].flush()
        if len(self._files) > 1:
            self.write_metadata()
        return self._files[-1]

    def _discard(self) -> None:
        for file in self._files:
            file.abandon()
        self._reserve.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _start_ns(self) -> int:
        return min((file.start_ns for file in self._files if file.messages), default=0)

    @property
    def _end_ns(self) -> int:
        return max((file.end_ns for file in self._files if file.messages), default=0)

    def _metadata(self) -> dict[str, Any]:
        topics = [(source, sum(file.counts.get(key, 0) for file in self._files)) for key, source in self._channels.items()]
        return {
            "version": METADATA_VERSION,
            "storage_identifier": "mcap",
            "duration": {"nanoseconds": max(0, self._end_ns - self._start_ns)},
            "starting_time": {"nanoseconds_since_epoch": self._start_ns},
            "message_count": self.messages,
            "topics_with_message_count": [{
                "topic_metadata": {
                    "name": source.name, "type": source.kind, "serialization_format": "cdr",
                    "offered_qos_profiles": profiles(source), "type_description_hash": source.digest},
                "message_count": messages} for source, messages in topics],
            "compression_format": "",  # of whole files or messages; mcap compresses within
            "compression_mode": "",
            "relative_file_paths": list(self.files),
            "files": [{
                "path": file.path.name, "starting_time": {"nanoseconds_since_epoch": file.start_ns if file.messages else 0},
                "duration": {"nanoseconds": file.end_ns - file.start_ns if file.messages else 0},
                "message_count": file.messages} for file in self._files],
            "custom_data": {**self._facts, STATE: self._state},
            "ros_distro": self._distribution,
        }


class _Reserve:
    """Space on the disk that is held for the last words of a recording. Its file has no name, so a killed process leaves nothing."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = -1
        with suppress(OSError):  # not every file system can promise space; then there is none to release
            free = shutil.disk_usage(folder).free
            path = folder / ".reserve"
            self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
            path.unlink()
            os.posix_fallocate(self._descriptor, 0, max(1, min(RESERVE_BYTES, free // 4)))

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Texts of several lines stay lines."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def make_folder(folder: Path) -> None:
    """Make the folder of a new recording, and those above it. Raises BagError that says what to do."""
    if folder.exists():
        raise BagError(f"{folder} exists already, and a recording is never replaced. Choose another --output, or move it away.")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise BagError(f"recording {folder} cannot be begun: {reason(error)}. Choose an --output that you may write.") from error


def next_folder(output: Path) -> Path:
    """Where the next recording of a run goes: `output`, or output_002 and so on where that exists."""
    numbered = (output.with_name(f"{output.name}_{number:03}") for number in count(2))
    return next(folder for folder in chain([output], numbered) if not folder.exists())


def reason(error: OSError) -> str:
    """Why the disk refused, in words."""
    return {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "the disk is read-only"}.get(
        error.errno or 0, error.strerror or str(error))


def _create(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
