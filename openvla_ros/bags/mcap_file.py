"""One mcap file while it is written: always whole records on the disk, so that it is readable up to the last flush."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

from openvla_ros.bags.salvage import Salvage
from openvla_ros.bags.sample import FOREVER_NS, Sample, Source, profiles

CHUNK_BYTES = 256 * 1024
COMPRESSIONS = {"none": CompressionType.NONE, "lz4": CompressionType.LZ4, "zstd": CompressionType.ZSTD}

FACTS = "openvla_ros"
"""Name of the mcap metadata record with the facts. When they changed while a file was written, it has several; the last one counts."""


@dataclass
class McapFile:
    """One mcap file of a recording. Everything may raise OSError."""

    path: Path
    descriptor: int
    compression: CompressionType
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    start_ns: int = FOREVER_NS
    end_ns: int = 0

    def __post_init__(self) -> None:
        self._stream = _Stream(self.descriptor)
        self._writer: Any = McapWriter(cast(Any, self._stream), chunk_size=CHUNK_BYTES, compression=self.compression)
        self._writer.start(profile="ros2", library="openvla_ros")
        self._schemas: dict[tuple[str, str], int] = {}
        self._channels: dict[tuple[str, str], int] = {}
        self._finished = False

    @property
    def messages(self) -> int:
        """How many were written."""
        return sum(self.counts.values())

    @property
    def size(self) -> int:
        """Bytes so far, without the chunk that is being filled."""
        return self._stream.tell()

    def describe(self, facts: Mapping[str, str]) -> None:
        """Say facts about the recording, from here on."""
        self._writer.add_metadata(FACTS, dict(facts))

    def write(self, source: Source, sample: Sample) -> None:
        """Append a message. source: its topic as it is to be registered, when this is its first message here."""
        key = (source.name, source.kind)
        if key not in self._channels:
            self._channels[key] = self._add(source)
        self._writer.add_message(self._channels[key], sample.log_ns, sample.data, sample.sent_ns)
        self.counts[key] = self.counts.get(key, 0) + 1
        self.start_ns, self.end_ns = min(self.start_ns, sample.log_ns), max(self.end_ns, sample.log_ns)
        self._stream.flush()  # chunks that were full

    def flush(self) -> None:
        """Bring all of it onto the disk."""
        self._writer.flush()
        self._stream.sync()

    def finish(self) -> None:
        """Write the index and close, once. After an OSError it may be called again, when there is more space."""
        if self.descriptor < 0:
            return
        if not self._finished:
            self._writer.finish()  # into memory: this cannot fail half-way
            self._finished = True
        self._stream.flush()
        self._stream.sync()
        self.abandon()

    def abandon(self) -> None:
        """Close without an index what `finish` did not close."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def recount(self) -> None:
        """Count what is on the disk, after `abandon`. Raises OSError, BagError."""
        with closing(Salvage([self.path])) as found:
            self.counts = {(connection.topic, connection.msgtype): connection.msgcount for connection in found.connections}
            self.start_ns, self.end_ns = found.start_time, found.end_time - 1

    def _add(self, source: Source) -> int:
        schema = (source.kind, source.definition)
        if schema not in self._schemas:
            encoding = "ros2msg" if source.definition else ""
            self._schemas[schema] = self._writer.register_schema(source.kind, encoding, source.definition.encode())
        known = {"offered_qos_profiles": profiles(source), "topic_type_hash": source.digest}
        return int(self._writer.register_channel(source.name, "cdr", self._schemas[schema], known))


class _Stream:
    """What the mcap library writes, held in memory until `flush`: the file on disk always ends with a whole record."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._parts: list[bytes] = []
        self._size = self._safe = 0

    def write(self, data: bytes) -> int:
        self._parts.append(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Give all of it to the file, or none. Raises OSError; it may be called again then."""
        try:
            for part in self._parts:
                left = memoryview(part)
                while left:
                    left = left[os.write(self._descriptor, left):]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._safe)
                os.lseek(self._descriptor, self._safe, os.SEEK_SET)
            raise
        self._parts.clear()
        self._safe = self._size

    def sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EROFS):  # what is no file on a disk has nothing to bring there
                raise
