"""Which of the topics that are there belong into a recording, and how one of them is listened to.

Without being told: what our nodes read and write under the names they were given, the usual names of what they would, and what tells
about the whole system. Of cameras only the one that the policy sees, because pictures fill disks.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from openvla_ros.bags.definitions import find_definition
from openvla_ros.bags.frames import COMPRESSED_IMAGE, IMAGE
from openvla_ros.bags.sample import Offer, Source
from openvla_ros.errors import ConfigurationError

OUR_NODES = ("policy_node", "command_node", "simulation_node")
USUAL = ("instruction", "driver", "action_chunk", "command_report", "joint_states", "teleop/delta_twist_cmds", "teleop/gripper", "joy",
         "enable", "emergency_stop_request", "robot_description", "/robot_description", "/tf", "/tf_static", "/diagnostics",
         "/parameter_events")
CAMERAS = ("image/compressed", "image")
"""Where no policy_node says what it looks at, the first of these that is published."""

UNASKED = frozenset(("/clock", "/rosout"))
"""Only when named: log times follow /clock already, and the log has files of its own."""

PICTURES = (IMAGE, COMPRESSED_IMAGE)
PICTURE_DEPTH, DEPTH = 20, 200
"""How many messages wait in the middleware while this process is busy."""

ADAPT_AFTER_S = 1.0
"""A subscription is made anew at most this often."""

REMEMBERED = 256


@dataclass(frozen=True)
class Choice:
    """What was asked for. Raises ConfigurationError for a pattern that is none."""

    topics: tuple[str, ...] = ()  # besides the usual ones
    image_topics: tuple[str, ...] = ()  # instead of the policy's camera
    exclude: str = ""  # pattern of names that are not wanted, searched anywhere in the name
    everything: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.exclude)
        except re.error as error:
            raise ConfigurationError(f"--exclude {self.exclude!r} is no regular expression: {error}.") from error

    def of(self, node: Node) -> set[tuple[str, str]]:
        """Name and type of what is published now and wanted."""
        named = {node.resolve_topic_name(name) for name in (*self.topics, *self.image_topics)}
        read, written = _of_our_nodes(node)
        present = {(name, kind) for name, kinds in node.get_topic_names_and_types() for kind in kinds if node.count_publishers(name)}
        cameras = self._cameras(node, read, {name for name, kind in present if kind in PICTURES})
        usual = {name for name, _ in read | written} | {node.resolve_topic_name(name) for name in USUAL}

        def is_wanted(name: str, kind: str) -> bool:
            if name in named:
                return True
            if "/_" in name or name in UNASKED or (self.exclude and re.search(self.exclude, name)):
                return False
            return self.everything or name in (cameras if kind in PICTURES else usual)

        return {(name, kind) for name, kind in present if is_wanted(name, kind)}

    def _cameras(self, node: Node, read: set[tuple[str, str]], present: set[str]) -> set[str]:
        if self.image_topics:
            return set()  # they are named
        seen = {name for name, kind in read if kind in PICTURES}
        usual = (node.resolve_topic_name(name) for name in CAMERAS)
        return seen or set(next(([name] for name in usual if name in present), []))


def _of_our_nodes(node: Node) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Name and type of the topics that our nodes in this namespace read, and that they write."""
    space = node.get_namespace()
    here = {name for name, other in node.get_node_names_and_namespaces() if other == space}
    read: set[tuple[str, str]] = set()
    written: set[tuple[str, str]] = set()
    for name in here.intersection(OUR_NODES):
        for ask, into in ((node.get_subscriber_names_and_types_by_node, read), (node.get_publisher_names_and_types_by_node, written)):
            try:
                into.update((topic, kind) for topic, kinds in ask(name, space) for kind in kinds)
            except RuntimeError:  # it has gone since (NodeNameNonExistentError)
                continue
    return read, written


class Quality(NamedTuple):
    """What a subscription asks for."""

    reliable: bool
    latched: bool


class Ear:
    """Hears every publisher of one topic, whatever it offers, as bytes. Callbacks come on the executor's thread."""

    def __init__(self, node: Node, name: str, kind: str, message: type, hear: Callable[[Source, bytes, dict[str, Any]], None]) -> None:
        """hear: called with what middleware says about the message, as rclpy's message info."""
        self._node, self._message, self._hear = node, message, hear
        self.source = Source(name, kind, definition=find_definition(kind))
        self.heard = self.lost = 0
        self._sequence: int | None = None
        self._recent: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        self._subscriptions: dict[Quality, Any] = {}
        self._publishers, self._made_s = 0, 0.0
        self.adapt()

    def adapt(self) -> None:
        """Suit the publishers that are there now. Call it about once per second."""
        infos = [info for info in self._node.get_publishers_info_by_topic(self.source.name) if info.topic_type == self.source.kind]
        if not infos:
            return  # keep listening as before: it may come back
        self._publishers = len(infos)
        offers = tuple(sorted({_offer(info.qos_profile) for info in infos}, key=lambda offer: (offer.durability, offer.reliability)))
        if offers == self.source.offers or monotonic() - self._made_s < ADAPT_AFTER_S:
            return
        digest = next((str(info.topic_type_hash) for info in infos if hasattr(info, "topic_type_hash")), "")
        self.source = Source(self.source.name, self.source.kind, offers, digest, self.source.definition)
        wanted = set(asked_of(offers))
        for quality in self._subscriptions.keys() - wanted:
            self._node.destroy_subscription(self._subscriptions.pop(quality))
        for quality in wanted - self._subscriptions.keys():
            self._subscriptions[quality] = self._subscribe(quality)
        self._made_s = monotonic()

    def _subscribe(self, quality: Quality) -> Any:
        profile = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=PICTURE_DEPTH if self.source.kind in PICTURES else DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if quality.reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if quality.latched else DurabilityPolicy.VOLATILE)

        # rclpy's annotations know neither raw messages nor callbacks that take the message's info.
        on_message: Any = self._on_message
        return self._node.create_subscription(self._message, self.source.name, on_message, profile, raw=True)

    def _on_message(self, data: bytes, info: dict[str, Any]) -> None:
        if self.source.latched:  # heard twice: by two subscriptions, or again by one that was made anew
            key = (int(info.get("source_timestamp") or 0), hash(data))
            if key in self._recent:
                return
            self._recent.append(key)
        self.heard += 1
        self._count_lost(info.get("publication_sequence_number"))
        self._hear(self.source, data, info)

    def _count_lost(self, sequence: int | None) -> None:
        """A publisher counts its messages, where the middleware says so. Of several it cannot be told whose count it is."""
        if self._publishers == 1 and not self.source.latched and sequence and self._sequence and sequence > self._sequence:
            self.lost += sequence - self._sequence - 1
        self._sequence = sequence if self._publishers == 1 else None


def asked_of(offers: Iterable[Offer]) -> list[Quality]:
    """The subscriptions that hear all of these publishers: reliable where all of them are, latched where one is.

    A volatile subscription hears every publisher from now on; a latched one only latched publishers, but what they said before too.
    """
    offers = list(offers)
    latched = [offer for offer in offers if offer.durability == DurabilityPolicy.TRANSIENT_LOCAL]
    groups = [(latched, True)] if latched else []
    if len(latched) < len(offers):
        groups.append((offers, False))
    return [Quality(all(offer.reliability == ReliabilityPolicy.RELIABLE for offer in group), is_latched) for group, is_latched in groups]


def _offer(profile: QoSProfile) -> Offer:
    return Offer(int(profile.history), int(profile.depth), int(profile.reliability), int(profile.durability), profile.deadline.nanoseconds,
                 profile.lifespan.nanoseconds, int(profile.liveliness), profile.liveliness_lease_duration.nanoseconds)
