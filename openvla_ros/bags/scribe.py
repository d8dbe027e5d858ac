"""Between the nodes, which must never wait for a disk, and the disk: a bounded queue, and the thread that writes recordings from it.

When the disk is slower than the topics the queue fills, and what does not fit is dropped and counted per topic, pictures first. When
the disk fails the recording ends as well as the disk allows, and `failure` says why.
"""

from __future__ import annotations

import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic

import yaml

from openvla_ros.bags.mcap_file import FACTS
from openvla_ros.bags.sample import Latched, Sample
from openvla_ros.bags.write import BagWriter, WriteSettings, next_folder, reason
from openvla_ros.errors import BagError, ConfigurationError

FLUSH_S = 0.5
"""What a killed process may lose, at most, besides what waits in the queue."""

METADATA_S = 5.0
"""How often the counts in metadata.yaml are brought up to date."""

LARGE_BYTES = 64 * 1024
LARGE_SHARE = 0.75
"""Messages above this size get only this share of the queue: when a disk is too slow, pictures are dropped before commands are."""

DROPPED = f"{FACTS}.dropped"
"""The fact that says what is missing, in YAML: topic -> messages."""


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait for the disk. Raises ConfigurationError."""

    bytes: int = 256_000_000
    messages: int = 20_000

    def __post_init__(self) -> None:
        if not (10**6 <= self.bytes <= 10**11 and 1 <= self.messages <= 10**7):
            raise ConfigurationError(f"queue of {self.bytes} bytes and {self.messages} messages, expected 1 MB to 100 GB and 1 to 10^7.")


@dataclass(frozen=True)
class Bag:
    """A recording that has ended, or has been begun."""

    path: Path
    messages: int = 0
    bytes: int = 0
    seconds: float = 0.0  # log time from the first to the last message
    files: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # topic -> messages
    dropped: Mapping[str, int] = field(default_factory=dict)  # topic -> messages that did not fit into the queue


@dataclass(frozen=True)
class Progress:
    """Where the writing is. `bag` is the recording being written, if any; `bags` those that have ended, empty ones left out."""

    bag: Bag | None
    bags: tuple[Bag, ...]
    waiting_bytes: int
    waiting_messages: int
    dropped: Mapping[str, int]


class Scribe:
    """Writes one recording after the other on a thread of its own. Any thread may call it; no call waits for the disk but `close`."""

    def __init__(self, settings: WriteSettings, limits: QueueLimits | None = None, distribution: str = "",
                 create: Callable[[Path], int] | None = None) -> None:
        """As of BagWriter."""
        self._settings, self._limits, self._distribution, self._create = settings, limits or QueueLimits(), distribution, create
        self._lock = threading.Condition()
        self._queue: deque[Sample | Callable[[], None]] = deque()  # messages, and what is to be done between them
        self._bytes = self._messages = 0  # of the messages in the queue
        self._dropped: Counter[str] = Counter()
        self._closing = False
        self._failure: BagError | None = None
        self._bags: list[Bag] = []
        self._open: Bag | None = None
        # Of the writing thread alone:
        self._writer: BagWriter | None = None
        self._latched = Latched()
        self._facts: dict[str, str] = {}
        self._dropped_before: Counter[str] = Counter()
        self._flushed_s = self._described_s = monotonic()
        self._thread = threading.Thread(target=self._run, name="scribe", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> BagError | None:
        """Why writing ended for good, or None."""
        return self._failure

    def begin(self, output: Path) -> None:
        """Begin a recording behind what is queued: `output`, or where that exists output_002 and so on."""
        self._do(partial(self._begin, output, self._dropped_now()))

    def describe(self, facts: Mapping[str, str]) -> None:
        """Texts about the recordings, from here on."""
        self._do(partial(self._describe, dict(facts)))

    def end(self) -> None:
        """End the recording behind what is queued."""
        self._do(partial(self._end, self._dropped_now()))

    def offer(self, sample: Sample) -> bool:
        """Take a message, unless the queue is full: then it is counted as dropped. While nothing is recorded only latched ones count."""
        size = len(sample.data)
        room = self._limits.bytes * (LARGE_SHARE if size > LARGE_BYTES else 1.0)
        with self._lock:
            if self._closing or self._failure is not None:
                return False
            full = self._bytes + size > room or self._messages >= self._limits.messages
            if full and self._messages:  # what waits for nobody is taken, however large it is
                self._dropped[sample.source.name] += 1
                return False
            self._queue.append(sample)
            self._bytes += size
            self._messages += 1
            self._lock.notify()
        return True

    def progress(self) -> Progress:
        """Where it is now."""
        with self._lock:
            return Progress(self._open, tuple(self._bags), self._bytes, self._messages, dict(self._dropped))

    def close(self, longest_s: float) -> bool:
        """End the recording and wait until all is on the disk, at most so long; what is still queued then is counted as dropped.

        False where the disk does not return even then: the thread hangs in it.
        """
        self._do(lambda: self._end(self._dropped_now()))  # then: also what is given up below
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join(longest_s)
        if self._thread.is_alive():
            with self._lock:
                for item in self._queue:
                    if isinstance(item, Sample):
                        self._dropped[item.source.name] += 1
                self._queue = deque(item for item in self._queue if not isinstance(item, Sample))
                self._bytes = self._messages = 0
            self._thread.join(longest_s)
        if self._thread.is_alive():
            self._failure = BagError("the disk takes nothing any more. What it has can be read. Look at 'dmesg', and use another disk.")
        return not self._thread.is_alive()

    def _dropped_now(self) -> Counter[str]:
        with self._lock:
            return Counter(self._dropped)

    def _do(self, what: Callable[[], None]) -> None:
        with self._lock:
            self._queue.append(what)
            self._lock.notify()

    # ------------------------------------------------------------------ writing thread

    def _run(self) -> None:
        while self._failure is None:
            with self._lock:
                if not self._queue:
                    if self._closing:
                        return
                    self._lock.wait(FLUSH_S)
                item = self._queue.popleft() if self._queue else None
            try:
                self._handle(item)
            except OSError as error:
                self._fail(reason(error))
            except BagError as error:
                self._failure = error
            except Exception as error:  # a thread that dies in silence would leave a recording that nobody writes
                traceback.print_exc()
                self._fail(f"{type(error).__name__}: {error}")

    def _handle(self, item: Sample | Callable[[], None] | None) -> None:
        if isinstance(item, Sample):
            try:
                self._write(item)
            finally:
                with self._lock:  # only now: what is being written still takes its place
                    self._bytes = max(0, self._bytes - len(item.data))
                    self._messages = max(0, self._messages - 1)
        elif item is not None:
            item()
        self._keep_up(monotonic())

    def _write(self, sample: Sample) -> None:
        if self._writer is None:
            self._latched.remember(sample)
        else:
            self._writer.write(sample)

    def _keep_up(self, now_s: float) -> None:
        """Bring what was written to the disk, and tell others how much that is."""
        if self._writer is None or now_s - self._flushed_s < FLUSH_S:
            return
        self._writer.flush()
        if now_s - self._described_s > METADATA_S:
            self._described_s = now_s
            self._writer.write_metadata()
        self._flushed_s = monotonic()
        self._show(self._writer)

    def _begin(self, output: Path, dropped: Counter[str]) -> None:
        if self._writer is not None:
            self._end(dropped)
        self._dropped_before = dropped
        self._writer = BagWriter(next_folder(output), self._settings, self._facts, self._latched, self._distribution, self._create)
        self._flushed_s = self._described_s = monotonic()
        self._show(self._writer)

    def _describe(self, facts: dict[str, str]) -> None:
        self._facts = facts
        if self._writer is not None:
            self._writer.describe({**facts, **self._missing(self._dropped_now())})

    def _end(self, dropped: Counter[str]) -> None:
        writer = self._writer
        if writer is None:
            return
        writer.describe({**self._facts, **self._missing(dropped)})
        writer.close()
        self._leave(writer, dropped)

    def _fail(self, why: str) -> None:
        writer, dropped = self._writer, self._dropped_now()
        self._writer = None
        if writer is None:
            self._failure = BagError(f"recording ended: {why}.")
            return
        finished = False
        with suppress(Exception):  # whatever is wrong with it, the reason is told
            finished = writer.rescue(why, {**self._facts, **self._missing(dropped)})
        self._leave(writer, dropped)
        kept = (f"{writer.folder} holds {writer.messages} messages" if writer.messages else "No message was written") + (
            "" if finished else ", its last file without an index ('mcap recover' writes one)")
        self._failure = BagError(f"recording ended: {why}. {kept}. Free space there, or choose another disk with --output.")

    def _leave(self, writer: BagWriter, dropped: Counter[str]) -> None:
        with self._lock:
            self._writer, self._open = None, None
            if writer.messages:
                self._bags.append(_bag(writer, dropped - self._dropped_before))

    def _show(self, writer: BagWriter) -> None:
        with self._lock:
            self._open = _bag(writer, self._dropped - self._dropped_before)

    def _missing(self, dropped: Counter[str]) -> dict[str, str]:
        missing = dropped - self._dropped_before
        return {DROPPED: yaml.safe_dump(dict(missing))} if missing else {}


def _bag(writer: BagWriter, dropped: Mapping[str, int]) -> Bag:
    return Bag(writer.folder, writer.messages, writer.size, writer.span_s, writer.files, writer.counts, dict(dropped))
