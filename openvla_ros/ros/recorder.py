"""recorder: what the nodes say into a rosbag2 recording, as the bytes that came over the wire; nothing is decoded, nobody waits for a disk.

| topic or service | type | |
| --- | --- | --- |
| what `recorder_topics.Choice` takes (in) | any that is installed | with the quality of its publishers |
| driver (in) | std_msgs/String | with `drivers`, recorded while one of them drives: the only topic that is looked into |
| ~/start, ~/stop | std_srvs/Trigger | begin or end a recording; each recording of a run is a folder of its own |
| /diagnostics (out) | diagnostic_msgs/DiagnosticArray | what is written, what waits for the disk, what was dropped |
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message
from std_msgs.msg import String
from std_srvs.srv import Trigger

from openvla_ros.bags.playback import CLOCK
from openvla_ros.bags.sample import Sample, Source
from openvla_ros.bags.scribe import Bag, Progress, QueueLimits, Scribe
from openvla_ros.bags.write import WriteSettings, make_folder
from openvla_ros.errors import BagError, ConfigurationError
from openvla_ros.ros.diagnostics import ERROR, OK, WARN, Diagnostics, Health
from openvla_ros.ros.lifetime import LEAVE_WITHIN_S, live
from openvla_ros.ros.player import message_class
from openvla_ros.ros.recorder_facts import Facts
from openvla_ros.ros.recorder_topics import Choice, Ear

DISCOVERY_S = 1.0
"""Before this nothing is recorded: who publishes what, and whether somebody publishes /clock, is not known yet."""

LOOK_S, ADAPT_EVERY = 0.25, 4
LATE_CLOCK_S = 10.0
"""So long after the start a /clock that is found late (discovery takes 3 s at times) is still followed, in a recording of its own."""

NOTHING_S = 10.0
"""A recording without any message for so long is worth a note."""

SETTLE_S, DRAIN_S = 3.0, 30.0
"""At the end: longest waits for what nodes answer about themselves, and for the disk to take what is queued."""

CLOCKS = ("auto", "system", "ros")
BACK_NS = 100_000_000
"""A ROS clock that goes back by more than this begins another run of time, and so another recording."""

DRIVERS = ("HOLD", "POLICY", "HUMAN", "STOPPED")


@dataclass(frozen=True)
class RecordOptions:
    """What to record, when, and how. Raises ConfigurationError."""

    output: Path
    namespace: str = ""
    choice: Choice = field(default_factory=Choice)
    drivers: tuple[str, ...] = ()  # record only while one of these drives; empty: whoever drives
    paused: bool = False  # wait for ~/start
    seconds: float = 0.0  # end after so much time in which was recorded; 0: no end
    clock: str = "auto"  # of the log times; auto: /clock if somebody publishes it when the recorder starts
    settings: WriteSettings = field(default_factory=WriteSettings)
    limits: QueueLimits = field(default_factory=QueueLimits)
    robot: str = ""  # profile to embed; empty: as command_node says
    checkpoint: str = ""  # to identify; empty: as policy_node says

    def __post_init__(self) -> None:
        if wrong := set(self.drivers) - set(DRIVERS):
            raise ConfigurationError(f"driver is {', '.join(sorted(wrong))}, expected some of {', '.join(DRIVERS).lower()}.")
        if self.clock not in CLOCKS:
            raise ConfigurationError(f"clock is {self.clock!r}, expected one of {', '.join(CLOCKS)}.")
        if not (self.seconds == 0.0 or 0.1 <= self.seconds <= 1e7):
            raise ConfigurationError(f"--seconds is {self.seconds}, expected 0 for no end, or at least 0.1.")


@dataclass(frozen=True)
class View:
    """Where a run is, for a display."""

    phase: str
    progress: Progress
    heard: Mapping[str, int]  # topic -> messages received, recorded or not
    lost: Mapping[str, int]  # topic -> messages that were sent but never came here
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What a run leaves. `silent`: topics that were listened to and said nothing. `error`: why it ended early, or empty."""

    bags: tuple[Bag, ...]
    dropped: Mapping[str, int]
    lost: Mapping[str, int]
    not_installed: Mapping[str, str]  # topic -> type
    silent: tuple[str, ...]
    notes: tuple[str, ...]
    error: str


class Recorder(Node):  # type: ignore[misc]
    """Records from the moment it is made, if the options say so."""

    def __init__(self, options: RecordOptions, on_progress: Callable[[View], None] | None = None) -> None:
        """on_progress: called on the executor's thread, four times per second."""
        super().__init__("recorder", namespace=options.namespace or None, use_global_arguments=False)
        self._options, self._on_progress = options, on_progress
        self._choice = replace(options.choice, topics=(*options.choice.topics, "driver")) if options.drivers else options.choice
        self.finished = threading.Event()
        self._scribe = Scribe(options.settings, options.limits, os.environ.get("ROS_DISTRO", "jazzy"))
        self._facts = Facts(self, options.robot, options.checkpoint)
        self._ears: dict[tuple[str, str], Ear] = {}
        self._not_installed: dict[str, str] = {}
        self._notes: list[str] = []
        self._made_s, self._looks = monotonic(), 0
        self._wanted, self._driver = not options.paused, ""
        self._simulated: bool | None = None  # None: not decided yet
        self._recording, self._begun_s, self._earlier_s = False, 0.0, 0.0
        self._leaving = False
        self._over_s: float | None = None  # since when no more is recorded, for good
        self._last_ns, self._heard_before = 0, 0
        self._diagnostics = Diagnostics(self, {"recording": self._health})
        self._services = [self.create_service(Trigger, "~/start", self._on_start), self.create_service(Trigger, "~/stop", self._on_stop)]
        self._driver_topic = self.resolve_topic_name("driver") if options.drivers else ""
        self._timer = self.create_timer(LOOK_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def farewell(self) -> None:
        """End the recording, with what the nodes said about themselves, and wait until it is on the disk. Raises BagError if that hangs."""
        if self._scribe.progress().bag is not None:
            self._leaving = True
            self.finished.wait(SETTLE_S + 1.0)  # for the executor's thread, which takes the answers
        self._scribe.describe(self._facts.texts())
        if not self._scribe.close(DRAIN_S) and self._scribe.failure is not None:
            raise self._scribe.failure  # nobody else could tell: a process whose thread hangs leaves from here

    def result(self) -> Result:
        """What there is, after `farewell`."""
        progress, failure = self._scribe.progress(), self._scribe.failure
        return Result(progress.bags, progress.dropped, self._lost(), dict(self._not_installed),
                      tuple(sorted(ear.source.name for ear in self._ears.values() if not ear.heard)), tuple(self._notes),
                      "" if failure is None else str(failure))

    # ------------------------------------------------------------------ what comes in

    def _hear(self, source: Source, data: bytes, info: Mapping[str, Any]) -> None:
        if self._recording or source.latched:
            self._take(source, data, info)
        if source.name == self._driver_topic:  # the only message that is looked into; it is recorded whichever way it decides
            self._driver = deserialize_message(data, String).data
            self._decide()

    def _take(self, source: Source, data: bytes, info: Mapping[str, Any]) -> None:
        if self._simulated:
            log_ns = sent_ns = int(self.get_clock().now().nanoseconds)
            if self._recording and log_ns < self._last_ns - BACK_NS:
                self._note(f"{CLOCK} went back by {(self._last_ns - log_ns) / 1e9:.1f} s: a recording ends there, another begins")
                self._end()
                self._begin()
            self._last_ns = log_ns
        else:
            log_ns = int(info.get("received_timestamp") or time.time_ns())
            sent_ns = int(info.get("source_timestamp") or log_ns)
        self._scribe.offer(Sample(source, log_ns, sent_ns, data))

    def _on_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._wanted = True
        self._decide()
        response.success = self._scribe.failure is None
        response.message = str(self._scribe.failure or ("recording" if self._recording else self._phase()))
        return response

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._wanted = False
        self._decide()
        response.success, response.message = True, "not recording; ~/start begins another"
        return response

    # ------------------------------------------------------------------ looking around

    def _look(self) -> None:
        self._looks += 1
        self._listen()
        self._choose_clock()
        if self._facts.look():
            self._scribe.describe(self._facts.texts())
        self._decide()
        self._watch()
        if self._on_progress is not None:
            self._on_progress(self._view())

    def _listen(self) -> None:
        for name, kind in sorted(self._choice.of(self) - self._ears.keys()):
            if name in self._not_installed:
                continue
            message = message_class(kind) if kind.count("/") == 2 and "/msg/" in kind else None
            if message is None:
                self._not_installed[name] = kind
                self._note(f"{name} is not recorded: its type {kind} is not installed here. Source the workspace that has it")
                continue
            self._ears[name, kind] = ear = Ear(self, name, kind, message, self._hear)
            if not ear.source.definition:
                self._note(f"{name} is recorded without the definition of {kind}, which is not found here: others may not be able to "
                           "decode it")
        if self._looks % ADAPT_EVERY == 0:
            for ear in self._ears.values():
                ear.adapt()

    def _choose_clock(self) -> None:
        """Decide which clock the log times are of; once, but for one that is found late."""
        age_s = monotonic() - self._made_s
        published = self._options.clock == "ros" or (self._options.clock == "auto" and self.count_publishers(CLOCK) > 0)
        if self._simulated or age_s < DISCOVERY_S or (self._simulated is False and not published):
            return
        if self._simulated is False and age_s > LATE_CLOCK_S:
            self._note(f"somebody publishes {CLOCK} now: log times stay those of this computer. With --clock ros they would follow it")
            return
        if self._recording:
            self._end()
        self._simulated = published
        if published:
            self.set_parameters([Parameter("use_sim_time", value=True)])
        self._facts.clock = f"log times are of {CLOCK}" if self._simulated else "log times are of this computer's clock"

    def _decide(self) -> None:
        """Begin or end, as command, driver and clock say now."""
        ready = self._simulated is not None and (not self._simulated or self.get_clock().now().nanoseconds > 0)
        right = not self._options.drivers or self._driver in self._options.drivers
        wanted = self._wanted and ready and right and self._over_s is None and self._scribe.failure is None
        if wanted and not self._recording:
            self._begin()
        elif self._recording and not wanted:
            self._end()

    def _begin(self) -> None:
        self._recording, self._begun_s, self._last_ns = True, monotonic(), 0
        self._heard_before = self._heard()
        self._scribe.begin(self._options.output)

    def _end(self) -> None:
        self._recording = False
        self._earlier_s += monotonic() - self._begun_s
        self._scribe.end()

    def _watch(self) -> None:
        """What is to be said, and whether it is time to go."""
        since_s = monotonic() - self._begun_s if self._recording else 0.0
        if since_s > NOTHING_S and self._heard() == self._heard_before:
            self._note(f"nothing came within {NOTHING_S:g} s in ROS domain {os.environ.get('ROS_DOMAIN_ID', '0')}. Do the nodes run, and "
                       "in the same domain and namespace? --topic names others")
        if self._simulated and not self._recording and monotonic() - self._made_s > NOTHING_S and not self.get_clock().now().nanoseconds:
            self._note(f"no time came on {CLOCK} yet. With --clock system its time is not waited for")
        if self._scribe.failure is not None:
            self.finished.set()
        is_over = self._leaving or 0.0 < self._options.seconds <= self._earlier_s + since_s
        if is_over and self._over_s is None:
            self._over_s, self._recording = monotonic(), False  # the bag stays open for what the nodes still answer
        if self._over_s is not None and (self._facts.settled() or monotonic() - self._over_s > SETTLE_S):
            self.finished.set()

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
            self.get_logger().warning(text)

    # ------------------------------------------------------------------ what is said about it

    def _phase(self) -> str:
        if self._recording:
            return "recording"
        if self._over_s is not None:
            return "ending"
        if self._simulated is None:
            return "looking around"
        if not self._wanted:
            return "paused: call ~/start"
        if self._options.drivers and self._driver not in self._options.drivers:
            return f"waiting for driver {' or '.join(self._options.drivers).lower()}, it is {self._driver.lower() or 'not known'}"
        return f"waiting for {CLOCK}"

    def _heard(self) -> int:
        return sum(ear.heard for ear in self._ears.values())

    def _lost(self) -> dict[str, int]:
        return {ear.source.name: ear.lost for ear in self._ears.values() if ear.lost}

    def _view(self) -> View:
        heard = {ear.source.name: ear.heard for ear in self._ears.values()}
        return View(self._phase(), self._scribe.progress(), heard, self._lost(), tuple(self._notes))

    def _health(self) -> Health:
        progress, failure = self._scribe.progress(), self._scribe.failure
        values: dict[str, object] = {
            "bag": progress.bag.path if progress.bag else "", "messages": progress.bag.messages if progress.bag else 0,
            "megabytes": f"{progress.bag.bytes / 1e6 if progress.bag else 0.0:.1f}", "queued messages": progress.waiting_messages,
            "queued megabytes": f"{progress.waiting_bytes / 1e6:.1f}",
            **{f"dropped {name}": number for name, number in sorted(progress.dropped.items())},
            **{f"lost {name}": number for name, number in sorted(self._lost().items())},
            **{f"not installed {name}": kind for name, kind in self._not_installed.items()}}
        if failure is not None:
            return Health(ERROR, str(failure), values)
        if progress.dropped:
            return Health(WARN, f"{self._phase()}; the disk is too slow: {sum(progress.dropped.values())} messages were dropped. Record "
                          "compressed pictures, or to another disk", values)
        return Health(OK, self._phase(), values)


def record(options: RecordOptions, on_progress: Callable[[View], None] | None = None) -> Result:
    """Record until SIGINT, SIGTERM, the end of `seconds`, or a failure of the disk, which the result tells.

    Blocks the main thread. Raises BagError and ConfigurationError for what can be known before.
    """
    check_output(options.output)
    made: list[Recorder] = []

    def make() -> Recorder:
        made.append(Recorder(options, on_progress))
        return made[0]

    code = live(make, arguments=[], leave_within_s=SETTLE_S + 2.0 * DRAIN_S + LEAVE_WITHIN_S)
    if not made or code:
        raise BagError("recording ended by a fault of the recorder; its log above says which.")
    return made[0].result()


def check_output(output: Path) -> None:
    """Refuse an output that exists or cannot be made. Raises BagError."""
    make_folder(output)
    output.rmdir()


def driver_names(words: Sequence[str]) -> tuple[str, ...]:
    """Drivers as they are written for people, "policy,human", in the words of the topic."""
    return tuple(word.strip().upper() for text in words for word in text.split(",") if word.strip())
