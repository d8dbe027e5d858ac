"""What a recording is made of: messages as they came, and what is known of their topics. No file and no ROS in here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

SECOND_NS = 1_000_000_000
FOREVER_NS = 2**63 - 1
"""What rmw calls infinite, for deadline, lifespan and lease."""

RELIABLE, BEST_EFFORT, TRANSIENT_LOCAL, VOLATILE, AUTOMATIC, UNKNOWN_HISTORY = 1, 2, 1, 2, 1, 3
"""Numbers of rmw/types.h."""

STATIC_TRANSFORMS_KEPT = 64
"""/tf_static has many publishers, whose messages add up, where those of another latched topic replace each other."""


@dataclass(frozen=True)
class Offer:
    """Quality of service that one publisher offers, in the numbers of rmw/types.h."""

    history: int = UNKNOWN_HISTORY
    depth: int = 0  # 0: the middleware does not say
    reliability: int = RELIABLE
    durability: int = VOLATILE
    deadline_ns: int = FOREVER_NS
    lifespan_ns: int = FOREVER_NS
    liveliness: int = AUTOMATIC
    lease_ns: int = FOREVER_NS


@dataclass(frozen=True, eq=False)
class Source:
    """A topic under one type, with what its publishers offer and the definition of the type. Equal only to itself."""

    name: str  # absolute: "/camera/image_raw"
    kind: str  # "sensor_msgs/msg/Image"
    offers: tuple[Offer, ...] = ()
    digest: str = ""  # "RIHS01_...", empty before Jazzy
    definition: str = ""  # as of `bags.definitions`; empty where it is not known

    @property
    def latched(self) -> bool:
        """Whether late joiners get what some publisher of it said before."""
        return any(offer.durability == TRANSIENT_LOCAL for offer in self.offers)

    @property
    def kept(self) -> int:
        """How many messages a latched topic stands for."""
        if self.name.endswith("/tf_static"):
            return STATIC_TRANSFORMS_KEPT
        return max(1, sum(max(1, offer.depth) for offer in self.offers if offer.durability == TRANSIENT_LOCAL))


class Sample(NamedTuple):
    """One message as it came over the wire (CDR)."""

    source: Source
    log_ns: int  # when it was received
    sent_ns: int  # when it was sent
    data: bytes


class Latched:
    """What the latched topics say now, so that a file that begins later says it too."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], deque[Sample]] = {}

    def remember(self, sample: Sample) -> None:
        """Keep it, if its topic is latched."""
        source = sample.source
        if source.latched:
            key = (source.name, source.kind)
            self._kept[key] = deque([*self._kept.get(key, ()), sample], maxlen=source.kept)

    def samples(self) -> Iterator[Sample]:
        """All that is kept, in the order in which it was sent per topic."""
        for samples in list(self._kept.values()):
            yield from samples


def profiles(source: Source) -> str:
    """What the publishers offer, in the YAML that rosbag2 stores up to version 8; empty where nobody was seen."""
    return "\n".join(_profile(offer, source) for offer in source.offers)


def _profile(offer: Offer, source: Source) -> str:
    depth = offer.depth or (source.kept if offer.durability == TRANSIENT_LOCAL else 0)  # a player must keep what was latched
    times = {"deadline": offer.deadline_ns, "lifespan": offer.lifespan_ns, "liveliness_lease_duration": offer.lease_ns}
    spelled = {name: f"  {name}:\n    sec: {value // SECOND_NS}\n    nsec: {value % SECOND_NS}\n" for name, value in times.items()}
    return (f"- history: {offer.history}\n  depth: {depth}\n  reliability: {offer.reliability}\n  durability: {offer.durability}\n"
            f"{spelled['deadline']}{spelled['lifespan']}  liveliness: {offer.liveliness}\n{spelled['liveliness_lease_duration']}"
            "  avoid_ros_namespace_conventions: false")
