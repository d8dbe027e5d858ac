"""bag_player: publishes a recording's topics with its timing, and its time on /clock. Messages are sent as the bytes they
were recorded as, without decoding.

| topic | type | quality |
| --- | --- | --- |
| what the recording has and `bags.playback` lets through | as recorded | as recorded |
| /clock (out) | rosgraph_msgs/Clock | best effort, depth 1, at least 40 Hz, from the first message until `linger_s` after the last |
| ~/resume (service) | std_srvs/Trigger | with `start_paused`: begin to play. What a service of ros2 bag play with this name does |
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from time import monotonic, monotonic_ns
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger

from openvla_ros.bags.frames import COMPRESSED_IMAGE, IMAGE
from openvla_ros.bags.playback import CLOCK, Event, Part, Timeline, choose, left_out
from openvla_ros.bags.read import SECOND_NS, Recording, Topic
from openvla_ros.errors import BagError, ConfigurationError
from openvla_ros.ros.convert import to_time
from openvla_ros.ros.lifetime import live

DISCOVERY_S = 1.0
"""How long to look for other publishers of our topics before the first message. Processes on one computer mostly find each
other in 0.05 to 0.3 s; now and then it takes the 3 s of a repeated announcement, so the player goes on looking."""

LOOK_EVERY_S = 0.5

CLOCK_QUALITY = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE,
                           durability=DurabilityPolicy.VOLATILE)
"""Offered reliable, so that readers of both kinds hear it; rclpy itself listens best effort."""


@dataclass(frozen=True)
class PlayOptions:
    """How to play. topics and remaps are judged by `bags.playback.choose`."""

    rate: float = 1.0
    loop: bool = False
    clock_hz: float = 100.0
    linger_s: float = 2.0
    start_paused: bool = False  # nothing is sent, the clock included, before somebody calls ~/resume
    wait_for_subscribers_s: float = 0.0  # longest wait for a reader of the camera before the first message; 0: none
    topics: tuple[str, ...] = ()
    remaps: Mapping[str, str] = field(default_factory=dict)


SETTLE_S = 3.0
"""The reader of a topic may discover its writer later than the writer discovers it, by one repeated announcement; what is sent
before that is lost. The writer cannot see it: with `start_paused` the reader's side says when to begin, and nothing is waited for."""


class Player(Node):
    """Plays on a thread of its own from the moment it is made. `failure` says afterwards why it ended early, if it did."""

    def __init__(self, recording: Recording, options: PlayOptions, on_progress: Callable[[float], None] | None = None) -> None:
        """on_progress: called on the playing thread with seconds of bag time. Raises BagError, ConfigurationError."""
        # A player that listened to /clock would listen to itself.
        super().__init__("bag_player", use_global_arguments=False)
        self._recording, self._options, self._on_progress = recording, options, on_progress
        self.finished = threading.Event()
        self.failure: Exception | None = None
        self.sent: dict[str, int] = {}
        self._stop = threading.Event()
        self._go = threading.Event()
        if not options.start_paused:
            self._go.set()
        self._next_look_s = 0.0  # steady time
        self._time = self.create_publisher(Clock, CLOCK, CLOCK_QUALITY)
        self.create_service(Trigger, "~/resume", self._on_resume)
        self._played: dict[Topic, tuple[Part, Any]] = {}  # each topic with its publisher
        chosen = choose(recording.topics, options.topics, options.remaps)
        for topic in left_out(recording.topics, chosen) if not options.topics else ():
            self.get_logger().info(f"{topic.name} ({topic.type}) is left out: it is not known to be sensing only")
        for part in chosen:
            self._add(part)
        if not self._played:
            raise BagError(f"nothing of {recording.path} can be played: no message package of its topics is installed.")
        self._timeline = Timeline(lambda: recording.messages(list(self._played)), recording.start_ns, recording.end_ns,
                                  options.rate, options.clock_hz, options.linger_s, options.loop)
        self._thread = threading.Thread(target=self._play, name="player", daemon=True)
        self._thread.start()

    def farewell(self) -> None:
        """Stop playing and let reliable readers get what was sent."""
        self._stop.set()
        self._thread.join(timeout=1.0)
        for _, publisher in self._played.values():
            publisher.wait_for_all_acked(Duration(seconds=0.5))

    def _on_resume(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = True, "was playing already" if self._go.is_set() else "begins to play"
        self._go.set()
        return response

    def _add(self, part: Part) -> None:
        kind = message_class(part.topic.type)
        if kind is None:
            self.get_logger().warning(f"{part.topic.name} is skipped: its type {part.topic.type} is not installed here")
            return
        quality = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=part.quality.depth,
            reliability=ReliabilityPolicy.RELIABLE if part.quality.reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if part.quality.latched else DurabilityPolicy.VOLATILE)
        publisher = self.create_publisher(kind, part.heard_as, quality)
        installed = self._installed_digest(part.heard_as)
        if part.topic.digest and installed and part.topic.digest != installed:
            self.destroy_publisher(publisher)
            self.get_logger().warning(f"{part.topic.name} is skipped: {part.topic.type} was recorded with another definition than "
                                      "the installed one")
            return
        if part.commanding:
            self.get_logger().warning(f"{part.topic.name} commands or is unknown: it is heard as {part.heard_as}")
        self._played[part.topic] = (part, publisher)
        self.sent[part.heard_as] = 0

    def _installed_digest(self, name: str) -> str:
        """The hash of the message definition that is installed here; empty before Jazzy."""
        for info in self.get_publishers_info_by_topic(name):
            if info.node_name == self.get_name() and hasattr(info, "topic_type_hash"):
                return str(info.topic_type_hash)
        return ""

    def _play(self) -> None:
        try:
            self._await_discovery()
            self._await_resume()
            self._await_subscribers()
            self._timeline.begin(monotonic_ns())
            while not self._stop.is_set() and not self._timeline.finished:
                self._refuse_company()
                self._stop.wait(max(0, self._timeline.next_wall_ns() - monotonic_ns()) / SECOND_NS)
                for event in self._timeline.due(monotonic_ns()):
                    if self._stop.is_set():
                        return
                    self._send(event)
        except Exception as error:  # whoever made the player raises it again, on the main thread
            self.failure = error
        finally:
            self.finished.set()

    def _send(self, event: Event) -> None:
        self._time.publish(Clock(clock=to_time(event.clock_ns)))
        if event.raw is not None:
            part, publisher = self._played[event.raw.topic]
            publisher.publish(event.raw.data)
            self.sent[part.heard_as] += 1
        if self._on_progress:
            self._on_progress((event.clock_ns - self._recording.start_ns) / SECOND_NS)

    def _await_discovery(self) -> None:
        deadline = monotonic() + DISCOVERY_S
        while not self._stop.is_set() and monotonic() < deadline:
            self._next_look_s = 0.0
            self._refuse_company()
            self._stop.wait(0.1)

    def _await_resume(self) -> None:
        while not self._stop.is_set() and not self._go.wait(0.05):
            self._refuse_company()

    def _refuse_company(self) -> None:
        """Two clocks, or a living camera among recorded pictures, would be a mixture that nobody can reason about."""
        if monotonic() < self._next_look_s:
            return
        self._next_look_s = monotonic() + LOOK_EVERY_S
        for name in (CLOCK, *self.sent):
            publishers = self.get_publishers_info_by_topic(name)
            if len(publishers) > 1:
                nodes = ", ".join(sorted(info.node_name for info in publishers))
                raise ConfigurationError(f"{name} has several publishers ({nodes}). Stop the other one, or give the recording "
                                         "another name with --remap. One that was killed is gone after 20 seconds.")

    def _await_subscribers(self) -> None:
        deadline = monotonic() + self._options.wait_for_subscribers_s
        cameras = [entry for entry in self._played.values() if entry[0].topic.type in (IMAGE, COMPRESSED_IMAGE)]
        awaited = cameras or list(self._played.values())
        while self._options.wait_for_subscribers_s > 0 and not self._stop.is_set():
            if any(publisher.get_subscription_count() for _, publisher in awaited):
                if not self._options.start_paused:
                    self._stop.wait(SETTLE_S)
                return
            if monotonic() > deadline:
                raise BagError(f"nobody listens to {', '.join(part.heard_as for part, _ in awaited)} after "
                               f"{self._options.wait_for_subscribers_s:g} s. Start and activate policy_node, or check its remaps.")
            self._stop.wait(0.05)


def message_class(kind: str) -> Any | None:
    """The Python class of "package/msg/Name", or None where its package is not installed (completely)."""
    package, _, name = kind.split("/")
    try:
        found = getattr(import_module(f"{package}.msg"), name)
        found.__class__.__import_type_support__()
    except (ImportError, AttributeError):
        return None
    return found if found.__class__._TYPE_SUPPORT is not None else None


def stay_on_this_computer() -> None:
    """Keep everything that this process publishes from here on on localhost. Call it before rclpy.init()."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.pop("ROS_STATIC_PEERS", None)
    if os.environ.get("ROS_DISTRO") == "humble":  # it knows only the older name, which later releases warn about
        os.environ["ROS_LOCALHOST_ONLY"] = "1"


def play(recording: Recording, options: PlayOptions, all_hosts: bool = False,
         on_progress: Callable[[float], None] | None = None) -> Mapping[str, int]:
    """Play until the end, SIGINT or SIGTERM; returns how many messages were sent per topic.

    Blocks the main thread. Raises BagError and ConfigurationError.
    """
    if not all_hosts:
        stay_on_this_computer()
    made: list[Player] = []

    def make() -> Player:
        made.append(Player(recording, options, on_progress))
        return made[0]

    code = live(make, arguments=[])
    player = made[0]
    if player.failure is not None:
        raise player.failure
    if code:
        raise BagError("playing ended by a fault of the node; its log above says which.")
    return player.sent
