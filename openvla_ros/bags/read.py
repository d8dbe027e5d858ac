"""A recording on disk in, its topics and messages out, in log-time order and with flat memory. The bag library stays here.

Takes rosbag2 recordings: a folder with metadata.yaml, or one .mcap or .db3 file. Message definitions that are stored
in the recording win over any that this machine knows, so that custom types need no installed package. mcap files that were
never finished (a killed recorder, or one that still writes) are read as far as they are whole; `Recording.notes` says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from rosbags.interfaces import MessageDefinitionFormat, QosDurability, QosReliability
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from openvla_ros.bags.salvage import Salvage, begins_well, has_index
from openvla_ros.errors import BagError

SECOND_NS = 1_000_000_000
IDL_SEPARATOR = "=" * 80 + "\n"

REPAIR = ("If it was cut off while recording: 'ros2 bag reindex FOLDER' (sqlite3), 'mcap recover FILE' (mcap), then try again; "
          "otherwise copy it again.")

WRITING_S = 5.0
"""An unfinished file that changed within so many seconds is probably still being written."""


@dataclass(frozen=True)
class Quality:
    """The part of a publisher's quality of service that a player must repeat."""

    reliable: bool = True
    latched: bool = False  # transient local: late joiners get the last `depth` messages
    depth: int = 10


@dataclass(frozen=True)
class Topic:
    """One topic of a recording, under one message type."""

    name: str  # absolute: "/camera/image_raw"
    type: str  # "sensor_msgs/msg/Image"
    count: int
    quality: Quality | None  # None where the recording does not say
    digest: str = ""  # "RIHS01_..." of the type, where the recording says


@dataclass(frozen=True)
class Raw:
    """One recorded message as it was on the wire (CDR), with the time at which the recorder got it [ns]."""

    topic: Topic
    log_ns: int
    data: bytes


class Recording:
    """An open recording; a context manager. One thread reads it at a time."""

    def __init__(self, path: Path | str) -> None:
        """Opens it. Raises BagError that says what is wrong with it and what to do."""
        self.path = Path(path)
        self._reader, note = _open(self.path)
        self.notes: tuple[str, ...] = (note,) if note else ()  # what a user must know about the file, beside its content
        self._connections: dict[tuple[str, str], list[Any]] = {}
        for connection in self._reader.connections:
            self._connections.setdefault((connection.topic, connection.msgtype), []).append(connection)
        self.topics: tuple[Topic, ...] = tuple(
            Topic(name, kind, sum(one.msgcount for one in same), _quality(same), same[0].digest)
            for (name, kind), same in sorted(self._connections.items()))
        self._decoders: dict[str, Callable[[bytes], Any]] = {}
        if not self._reader.message_count:
            self.close()
            raise BagError(f"recording {self.path} holds no message{f' ({note})' if note else ''}. Record it again, and look at "
                           "'ros2 bag info' while it runs.")
        self.start_ns = int(self._reader.start_time)
        self.end_ns = int(self._reader.end_time) - 1  # the library's end lies one nanosecond behind the last message

    @property
    def name(self) -> str:
        """Its folder or file name, for reports."""
        return self.path.resolve().name

    def facts(self) -> dict[str, str]:
        """What the recorder wrote about the day, `custom_data` of metadata.yaml; empty where there is none or it cannot be read."""
        try:
            content = yaml.safe_load((self.path / "metadata.yaml").read_text(encoding="utf-8"))
            return {str(name): str(value) for name, value in content["rosbag2_bagfile_information"]["custom_data"].items()}
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            return {}

    def topic(self, name: str) -> Topic:
        """The topic of that name, with or without its leading slash. Raises BagError that lists the topics there are."""
        found = [topic for topic in self.topics if topic.name == "/" + name.lstrip("/")]
        if not found:
            raise BagError(f"recording {self.path} has no topic {name!r}; it has {self.listing()}.")
        if len(found) > 1:
            raise BagError(f"topic {name!r} of {self.path} has several types: {', '.join(topic.type for topic in found)}. "
                           "Split the recording by type.")
        return found[0]

    def listing(self) -> str:
        """Its topics in words, for error messages."""
        return ", ".join(f"{topic.name} ({topic.type}, {topic.count})" for topic in self.topics)

    def messages(self, topics: Sequence[Topic], start_ns: int | None = None, stop_ns: int | None = None) -> Iterator[Raw]:
        """The messages of these topics in log-time order. Raises BagError where the file is damaged.

        start_ns, stop_ns: only those logged in [start, stop); found by the recording's index where it has one.
        """
        chosen = {id(connection): topic for topic in topics for connection in self._connections[(topic.name, topic.type)]}
        connections = [connection for topic in topics for connection in self._connections[(topic.name, topic.type)]]
        if not connections:
            return
        try:
            for connection, log_ns, data in self._reader.messages(connections, start_ns, stop_ns):
                yield Raw(chosen[id(connection)], int(log_ns), bytes(data))
        except Exception as error:  # the library meets damaged bytes with many kinds of exceptions
            raise BagError(f"recording {self.path} is damaged: {_words(error)}. {REPAIR}") from error

    def decode(self, raw: Raw) -> Any:
        """The message as an object with the fields of its type; arrays are numpy. Raises BagError."""
        kind = raw.topic.type
        if kind not in self._decoders:
            self._decoders[kind] = self._decoder(raw.topic)
        try:
            return self._decoders[kind](raw.data)
        except Exception as error:
            raise BagError(f"a message of {raw.topic.name} in {self.path} does not fit its type {kind}: {_words(error)}. "
                           "It is damaged, or was recorded with another version of the type.") from error

    def close(self) -> None:
        """Close the files."""
        if self._reader.is_open:
            self._reader.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _decoder(self, topic: Topic) -> Callable[[bytes], Any]:
        definition = self._connections[(topic.name, topic.type)][0].msgdef
        try:
            if definition.format == MessageDefinitionFormat.NONE:
                store = get_typestore(Stores.ROS2_JAZZY)
            else:
                store = get_typestore(Stores.EMPTY)
                store.register(_types(definition, topic.type))
            if topic.type not in store.fielddefs:
                raise BagError(f"{self.path} stores no definition of {topic.type} and it is no standard type")
        except Exception as error:
            raise BagError(f"topic {topic.name} of {self.path} cannot be decoded: {_words(error)}. "
                           "Choose another topic, or record it with a ROS version that stores definitions (mcap).") from error
        return lambda data: store.deserialize_cdr(data, topic.type)


def _open(path: Path) -> tuple[Any, str]:
    """A reader of the recording, and a note where it is not whole."""
    try:
        if unfinished := _unfinished(path):
            return _salvage(path, unfinished)
        reader = Reader(path)
        reader.open()
        return reader, ""
    except BagError:
        raise
    except PermissionError as error:
        raise BagError(f"recording {path} may not be read: {error}. Change its owner or its permissions (sudo chown -R $USER {path}).") \
            from error
    except Exception as error:
        raise BagError(f"recording {path} cannot be read: {_words(error)}. {REPAIR}") from error


def _unfinished(path: Path) -> list[Path]:
    """The mcap files of a recording that must be read without index; none where all is as it should be.

    Raises PermissionError, and BagError for what is no recording at all.
    """
    if not _exists(path):
        raise BagError(f"there is no recording at {path}. Name a rosbag2 folder, a .mcap or a .db3 file.")
    if path.suffix == ".bag":
        raise BagError(f"{path} is a ROS 1 recording. Convert it: rosbags-convert --src {path} --dst {path.with_suffix('')}.")
    files = sorted((file for file in path.iterdir() if file.suffix in (".mcap", ".db3")), key=_natural) if path.is_dir() else [path]
    for file in files:
        file.open("rb").close()  # a file that may not be read is named here, and not taken for a damaged one
    described = not path.is_dir() or (path / "metadata.yaml").exists()
    pages = [file for file in files if file.suffix == ".mcap" and begins_well(file)]
    if pages and len(pages) == len(files) and not (described and all(has_index(file) for file in files)):
        return pages
    if not described:
        hint = f"Name one of its files ({', '.join(file.name for file in files)}), or run 'ros2 bag reindex {path}'." if files else \
            "Name a rosbag2 folder, a .mcap or a .db3 file."
        raise BagError(f"{path} has no metadata.yaml, so it is no finished rosbag2 recording. {hint}")
    return []


def _salvage(path: Path, files: list[Path]) -> tuple[Any, str]:
    reader = Salvage(files)
    if not reader.cut:
        return reader, "it has no index or no metadata.yaml: it was read from front to back"
    newest = max(file.stat().st_mtime for file in files)
    how = "is still being written, or was cut off just now" if time.time() - newest < WRITING_S else "was cut off while recording"
    return reader, f"the recording {how}: {', '.join(file.name for file in reader.cut)} was read as far as it is whole"


def _exists(path: Path) -> bool:
    """As Path.exists, but a folder on the way that may not be entered raises PermissionError in every version of Python."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _natural(path: Path) -> list[tuple[int, str]]:
    """day_10.mcap comes after day_9.mcap."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _types(definition: Any, kind: str) -> Any:
    """The types of one stored definition. rosbag2 stores several IDL files in one text, each under a line of '='."""
    if definition.format == MessageDefinitionFormat.MSG:
        return get_types_from_msg(definition.data, kind)
    if not definition.data.startswith(IDL_SEPARATOR):
        return get_types_from_idl(definition.data)
    types: dict[str, Any] = {}
    for part in definition.data.split(IDL_SEPARATOR)[1:]:
        types.update(get_types_from_idl(part.split("\n", 1)[1]))
    return types


def _quality(connections: Sequence[Any]) -> Quality | None:
    """What all recorded publishers of a topic together promised: the least reliable of them counts."""
    profiles = [profile for connection in connections for profile in connection.ext.offered_qos_profiles]
    if not profiles:
        return None
    return Quality(reliable=all(profile.reliability != QosReliability.BEST_EFFORT for profile in profiles),
                   latched=all(profile.durability == QosDurability.TRANSIENT_LOCAL for profile in profiles),
                   depth=max(1, min(1000, max(profile.depth for profile in profiles))))


def _words(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return text or type(error).__name__
