"""A recording as a programme of events in time: which topics may be heard, under which names, and when. No ROS in here.

Recordings never move a real arm by accident: only topics that are known to be sensing are played as they are. Everything
else, known or not, counts as commanding: it must be named, and then it is heard under /replay only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from openvla_ros.bags.read import SECOND_NS, Quality, Raw, Topic
from openvla_ros.errors import BagError, ConfigurationError

REPLAY_PREFIX = "/replay"
CLOCK = "/clock"

# Types that only ever report what a sensor saw, under any name that does not command.
SENSOR_TYPES = frozenset(f"sensor_msgs/msg/{name}" for name in (
    "BatteryState", "CameraInfo", "CompressedImage", "FluidPressure", "Image", "Imu", "LaserScan", "MagneticField", "PointCloud2",
    "Range", "Temperature"))

# Types that report or command, depending on the name: the last part, or some part, of the topic name decides. /diagnostics is none of
# them: what the nodes of that day said about themselves would be taken for the living ones of the same name.
NAMED_TYPES: Mapping[str, re.Pattern[str]] = {
    "sensor_msgs/msg/JointState": re.compile(r"(.*/)?joint_states"),
    "std_msgs/msg/String": re.compile(r"(.*/)?(instruction|robot_description)"),
    "std_msgs/msg/Float64": re.compile(r"(.*/)?state/[^/]+"),
    "geometry_msgs/msg/PoseStamped": re.compile(r"(.*/)?state/[^/]+"),
    "geometry_msgs/msg/WrenchStamped": re.compile(r"(.*/)?state/[^/]+"),
    "tf2_msgs/msg/TFMessage": re.compile(r"(.*/)?tf(_static)?"),
}

# Parts of a name that command an arm, a gripper, a controller or a node, whatever the type.
COMMANDING_NAME = re.compile(
    r"(^|[/_])(commands?|cmds?|cmd_vel|joint_trajectory|action_chunk|action\d*|driver|teleop|joy|enable|emergency_stop|target|goal|"
    r"set|request)([/_]|$)")

LATCHED_BY_CUSTOM = re.compile(r"(.*/)?(instruction|robot_description|tf_static)")


@dataclass(frozen=True)
class Part:
    """One topic in the programme: where it comes from and where it is heard."""

    topic: Topic
    heard_as: str
    quality: Quality
    commanding: bool


def is_sensing(name: str, kind: str) -> bool:
    """Whether a topic is known to report only. Unknown types and names are not: they count as commanding."""
    if COMMANDING_NAME.search(name):
        return False
    pattern = NAMED_TYPES.get(kind)
    return kind in SENSOR_TYPES if pattern is None else bool(pattern.fullmatch(name))


def choose(topics: Sequence[Topic], named: Sequence[str] = (), remaps: Mapping[str, str] | None = None) -> tuple[Part, ...]:
    """The programme: every sensing topic, or exactly the named ones; commanding ones only when named, under /replay.

    remaps: recorded name -> name to be heard under. Raises BagError for a name that is not in the recording or when
    nothing is left, ConfigurationError for a remap that would turn a sensing topic into a commanding one or two into one.
    """
    moved = {_absolute(old): _absolute(new) for old, new in (remaps or {}).items()}
    wanted = {_absolute(name) for name in named}
    known = {topic.name for topic in topics}
    for name in sorted((wanted | set(moved)) - known):
        raise BagError(f"the recording has no topic {name}; it has {', '.join(sorted(known))}.")
    parts = []
    for topic in topics:
        sensing = is_sensing(topic.name, topic.type)
        if topic.name == CLOCK or not topic.count or (topic.name not in wanted if wanted else not sensing):
            continue
        parts.append(_part(topic, moved.get(topic.name, topic.name), sensing))
    if not parts:
        raise BagError(f"nothing to play: none of {', '.join(sorted(wanted or known))} is a sensing topic with messages. "
                       "Name topics with --topics; those that command are then heard under /replay.")
    names = [part.heard_as for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two recorded topics would be heard as {name}. Give one of them another name with --remap.")
    return tuple(parts)


def sensing_names(topics: Sequence[Topic]) -> tuple[str, ...]:
    """Names of the topics with messages that may be played as they are, by any player. Raises BagError when there are none."""
    return tuple(part.topic.name for part in choose(topics) if not part.commanding)


def left_out(topics: Sequence[Topic], parts: Sequence[Part]) -> tuple[Topic, ...]:
    """Topics with messages that are not in the programme, for a word to the user."""
    chosen = {(part.topic.name, part.topic.type) for part in parts}
    return tuple(topic for topic in topics if topic.count and (topic.name, topic.type) not in chosen)


def _part(topic: Topic, name: str, sensing: bool) -> Part:
    quality = topic.quality or Quality(latched=bool(LATCHED_BY_CUSTOM.fullmatch(topic.name)))
    if not sensing:
        return Part(topic, name if name.startswith(REPLAY_PREFIX + "/") else REPLAY_PREFIX + name, quality, True)
    # Any name will do for a picture, but an image must not become a command either.
    if name != topic.name and not is_sensing(name, topic.type):
        raise ConfigurationError(f"remap {topic.name}:={name} would turn a recording into a command. Choose a name that only "
                                 "reports, such as /state/..., .../joint_states or .../image_raw.")
    return Part(topic, name, quality, False)


def _absolute(name: str) -> str:
    if not re.fullmatch(r"/?[A-Za-z_~][\w/]*", name) or name.startswith("~"):
        raise ConfigurationError(f"{name!r} is not a topic name. Write it as it is in the recording: /camera/image_raw.")
    return "/" + name.lstrip("/")


@dataclass(frozen=True)
class Event:
    """What is to be sent now: the time on /clock, then, where there is one, a message."""

    clock_ns: int
    raw: Raw | None = None


class Timeline:
    """Says which events are due at a moment of a steady wall clock. Time is an argument; one thread calls it.

    Bag time runs `rate` times as fast as the wall. The clock is given at `clock_hz` per second of wall time and once more
    right before each message, so that no consumer meets a message from its future. After the last message the clock goes
    on for `linger_s` of wall time; with `loop`, it *goes back* to the start instead: header stamps cannot be rewritten
    without decoding, and a clock that disagrees with them would lie. Consumers notice the jump; that is honest.
    """

    def __init__(self, open_messages: Callable[[], Iterator[Raw]], start_ns: int, end_ns: int, rate: float = 1.0,
                 clock_hz: float = 100.0, linger_s: float = 2.0, loop: bool = False) -> None:
        """open_messages: gives the messages from the beginning, in log order. Raises ConfigurationError."""
        if not 0.01 <= rate <= 100.0:
            raise ConfigurationError(f"rate is {rate}, expected 0.01 to 100.")
        if not 40.0 <= clock_hz <= 1000.0:
            raise ConfigurationError(f"clock_hz is {clock_hz}, expected 40 to 1000: nodes stop the arm when time stands still.")
        if not 0.0 <= linger_s <= 3600.0:
            raise ConfigurationError(f"linger_s is {linger_s}, expected 0 to 3600 seconds.")
        self._open, self._start_ns, self._end_ns = open_messages, start_ns, end_ns
        self._rate, self._clock_period_ns, self._loop = rate, round(SECOND_NS / clock_hz), loop
        self._linger_ns = round(linger_s * SECOND_NS)
        self.rounds = 0

    def begin(self, wall_ns: int) -> None:
        """The recording's first instant is now."""
        self._begun_ns = self._next_clock_ns = wall_ns
        self._clock_ns = self._start_ns
        self._messages = self._open()
        self._next = next(self._messages, None)

    @property
    def finished(self) -> bool:
        """Whether nothing will ever be due again."""
        return not self._loop and self._next is None and self._next_clock_ns > self._wall_of(self._end_ns) + self._linger_ns

    def next_wall_ns(self) -> int:
        """When `due` should be called again."""
        if self._next is None:
            return self._next_clock_ns
        return min(self._next_clock_ns, self._wall_of(self._next.log_ns))

    def due(self, wall_ns: int) -> Iterator[Event]:
        """Everything that is due until `wall_ns`, in order; clock ticks that were missed are one tick."""
        while self._next is not None and self._wall_of(self._next.log_ns) <= wall_ns:
            yield Event(self._tick(self._next.log_ns), self._next)
            self._next = next(self._messages, None)
        if self._next is None and self._loop:
            self.rounds += 1
            self.begin(wall_ns)
            yield Event(self._start_ns)
        elif self._next_clock_ns <= wall_ns:
            yield Event(self._tick(self.bag_ns(wall_ns)))
        while self._next_clock_ns <= wall_ns:
            self._next_clock_ns += self._clock_period_ns

    def bag_ns(self, wall_ns: int) -> int:
        """The time of the recording at a moment of the wall clock."""
        return self._start_ns + round((wall_ns - self._begun_ns) * self._rate)

    def _tick(self, bag_ns: int) -> int:
        """Rounding and late messages must not turn the clock back within one round."""
        self._clock_ns = max(self._clock_ns, bag_ns)
        return self._clock_ns

    def _wall_of(self, bag_ns: int) -> int:
        return self._begun_ns + round((bag_ns - self._start_ns) / self._rate)
