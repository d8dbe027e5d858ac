"""An mcap file without an index in, its topics and messages out, as far as the file is whole.

A recorder that was killed, a disk that was full, or a recorder that still writes leave such a file. It is read from front to back:
records until the first one that is cut off or makes no sense. Format: mcap.dev/spec, version 0.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lz4.frame import decompress as lz4_decompress  # comes with rosbags, as zstd does
from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2.metadata import parse_qos

from openvla_ros.errors import BagError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Buffer = bytes | memoryview

MAGIC = b"\x89MCAP0\r\n"
FOOTER_BYTES = 9 + 20  # opcode and length, summary start, summary offset start, checksum

FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, DATA_END = 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x0F
RECORD, MESSAGE_HEADER, INDEX_HEADER = struct.Struct("<BQ"), struct.Struct("<HIQQ"), struct.Struct("<HI")
CHUNK_HEADER_BYTES = 3 * 8 + 4  # start, end, uncompressed size, checksum

FORMATS = {"ros2msg": MessageDefinitionFormat.MSG, "ros2idl": MessageDefinitionFormat.IDL, "omgidl": MessageDefinitionFormat.IDL}
DECOMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {"": bytes, "lz4": lz4_decompress, "zstd": zstd.decompress}


class Record(NamedTuple):
    """Where a record's content lies in its file; `size` is what is there, less than promised where the file was cut."""

    opcode: int
    start: int
    size: int
    whole: bool


def has_index(path: Path) -> bool:
    """Whether an mcap file was finished and has a summary. False for anything shorter. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 2 * len(MAGIC) + FOOTER_BYTES:
            return False
        file.seek(size - len(MAGIC) - FOOTER_BYTES)
        end = file.read()
    (summary_start,) = struct.unpack_from("<Q", end, 9)
    return end.endswith(MAGIC) and end[0] == FOOTER and summary_start > 0


def begins_well(path: Path) -> bool:
    """Whether a file begins as mcap does. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class Salvage:
    """mcap files read from front to back, one after the other, with the part of `rosbags.rosbag2.Reader` that `bags.read` uses.

    What is written after it was opened is not seen. Memory: one chunk at a time, however long the files are.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Scans the files once. Raises OSError, and BagError for bytes that no salvage makes sense of."""
        self.connections: list[Any] = []
        self.start_time, self.end_time, self.message_count = 2**63 - 1, 0, 0
        self.is_open = True
        self.cut: list[Path] = []  # files whose end is missing
        self._files = [_File(path) for path in paths]
        for number, file in enumerate(self._files):
            file.scan()
            if not file.ended:
                self.cut.append(file.path)
            self.connections += [_connection(file, channel, number) for channel in file.channels.values()]
            if file.counts:
                self.start_time, self.end_time = min(self.start_time, file.start_ns), max(self.end_time, file.end_ns + 1)
            self.message_count += file.counts.total()

    def messages(self, connections: Sequence[Any], start: int | None = None, stop: int | None = None) -> Iterator[tuple[Any, int, bytes]]:
        """Messages logged in [start, stop) in the order of the files, those of a chunk by log time. Without an index all is read."""
        for number, file in enumerate(self._files):
            chosen = {connection.id: connection for connection in connections if connection.owner == number}
            if chosen:
                yield from ((chosen[channel], log_ns, data) for channel, log_ns, data in file.messages(chosen)
                            if (start is None or log_ns >= start) and (stop is None or log_ns < stop))

    def close(self) -> None:
        """Close the files."""
        self.is_open = False
        for file in self._files:
            file.close()


class Channel(NamedTuple):
    """A channel record."""

    id: int
    schema: int
    topic: str
    encoding: str
    metadata: Mapping[str, str]


class _File:
    """One file, its size fixed when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: BinaryIO = path.open("rb")
        self._size = self._stream.seek(0, 2)
        self.schemas: dict[int, tuple[str, str, str]] = {}  # name, encoding, text
        self.channels: dict[int, Channel] = {}
        self.counts: Counter[int] = Counter()
        self.start_ns, self.end_ns = 2**63 - 1, 0
        self.ended = False  # the record was met that ends the data

    def close(self) -> None:
        self._stream.close()

    def scan(self) -> None:
        """Learn the channels and count the messages. A chunk with its whole index behind it is stepped over, not read."""
        chunk: Record | None = None
        indexes: list[Record] = []
        for record in self._records():
            if record.opcode == MESSAGE_INDEX:
                indexes.append(record)
                continue
            self._count(chunk, indexes)
            chunk, indexes = record if record.opcode == CHUNK else None, []
            if chunk is None:
                self._learn(record.opcode, self._content(record))
        self._count(chunk, [])  # its index may be cut: look into the last chunk itself

    def messages(self, channels: Mapping[int, Any]) -> Iterator[tuple[int, int, bytes]]:
        """Channel, log time [ns] and bytes of the messages of some channels."""
        for record in self._records():
            if record.opcode == MESSAGE:
                found: list[Buffer] = [self._content(record)]
            elif record.opcode == CHUNK:
                found = [part for opcode, part in self._inner(record) if opcode == MESSAGE]
            else:
                continue
            heads = [MESSAGE_HEADER.unpack_from(part) for part in found]
            for (channel, _, log_ns, _), part in sorted(zip(heads, found, strict=True), key=lambda entry: entry[0][2]):
                if channel in channels:
                    yield channel, log_ns, bytes(part[MESSAGE_HEADER.size:])

    def _records(self) -> Iterator[Record]:
        """The records from the front, up to the end of the data or to what makes no sense; a cut chunk is the last."""
        at = len(MAGIC)
        while at + RECORD.size <= self._size:
            self._stream.seek(at)
            opcode, size = RECORD.unpack(self._stream.read(RECORD.size))
            here = min(size, self._size - at - RECORD.size)
            if opcode in (FOOTER, DATA_END):
                self.ended = True
                return
            if not 0 < opcode < DATA_END or (here < size and opcode != CHUNK):
                return
            yield Record(opcode, at + RECORD.size, here, here == size)
            at += RECORD.size + here

    def _content(self, record: Record) -> bytes:
        self._stream.seek(record.start)
        return self._stream.read(record.size)

    def _inner(self, record: Record) -> Iterator[tuple[int, memoryview]]:
        """Opcode and content of the whole records inside a chunk. Nothing for a compressed chunk that was cut."""
        content = self._content(record)
        try:
            compression, at = _text(content, CHUNK_HEADER_BYTES)
        except (struct.error, UnicodeDecodeError):
            return
        if compression not in DECOMPRESSORS:
            raise BagError(f"its chunks are compressed with {compression!r}; lz4 and zstd can be read")
        if compression and not record.whole:
            return
        inside = memoryview(DECOMPRESSORS[compression](content[at + 8:]))  # 8: the compressed size, which the record says too
        at = 0
        while at + RECORD.size <= len(inside):
            opcode, size = RECORD.unpack_from(inside, at)
            at += RECORD.size
            if at + size > len(inside):
                return
            yield opcode, inside[at:at + size]
            at += size

    def _count(self, chunk: Record | None, indexes: Sequence[Record]) -> None:
        """Count the messages of a chunk: by its indexes where they are there and speak of known channels, else by its content."""
        if chunk is None:
            return
        contents = [self._content(index) for index in indexes]
        if contents and all(INDEX_HEADER.unpack_from(content)[0] in self.channels for content in contents):
            for content in contents:
                self._add(INDEX_HEADER.unpack_from(content)[0],
                          [log_ns for log_ns, _ in struct.iter_unpack("<QQ", content[INDEX_HEADER.size:])])
            return
        for opcode, part in self._inner(chunk):
            self._learn(opcode, bytes(part))

    def _learn(self, opcode: int, content: bytes) -> None:
        """What a record says: a schema, a channel, or one message more."""
        if opcode == SCHEMA:
            (number,) = struct.unpack_from("<H", content)
            name, at = _text(content, 2)
            encoding, at = _text(content, at)
            self.schemas[number] = (name, encoding, _text(content, at)[0])
        elif opcode == CHANNEL:
            number, schema = struct.unpack_from("<HH", content)
            topic, at = _text(content, 4)
            encoding, at = _text(content, at)
            self.channels[number] = Channel(number, schema, topic, encoding, _map(content, at))
        elif opcode == MESSAGE:
            channel, _, log_ns, _ = MESSAGE_HEADER.unpack_from(content)
            self._add(channel, [log_ns])

    def _add(self, channel: int, times: Sequence[int]) -> None:
        if times:
            self.counts[channel] += len(times)
            self.start_ns, self.end_ns = min(self.start_ns, *times), max(self.end_ns, *times)


def _connection(file: _File, channel: Channel, owner: int) -> Any:
    """A channel as the library describes one."""
    name, encoding, text = file.schemas.get(channel.schema, ("", "", ""))
    definition = MessageDefinition(FORMATS.get(encoding, MessageDefinitionFormat.NONE), text)
    qualities = parse_qos(channel.metadata.get("offered_qos_profiles", ""))
    digest = channel.metadata.get("topic_type_hash", "")
    return Connection(channel.id, channel.topic, name, definition, digest, file.counts[channel.id],
                      ConnectionExtRosbag2(channel.encoding, qualities), owner)


def _text(content: bytes, at: int) -> tuple[str, int]:
    """A text with its length in front, and where it ends."""
    (length,) = struct.unpack_from("<I", content, at)
    at += 4
    return content[at:at + length].decode(), at + length


def _map(content: bytes, at: int) -> dict[str, str]:
    """A map of texts."""
    (length,) = struct.unpack_from("<I", content, at)
    at, found = at + 4, dict[str, str]()
    end = at + length
    while at < end:
        key, at = _text(content, at)
        found[key], at = _text(content, at)
    return found
