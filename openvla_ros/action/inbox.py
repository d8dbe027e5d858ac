"""Judges chunks at the door: whose they are, in which order, of which age. What is taken is played or told elsewhere.

Comes in: a chunk as it was received, and who drives; goes out: what to do about it. Ages and stamps are on the ROS clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from openvla_ros.action.safety import Refusal, refuse_content
from openvla_ros.action.schedule import SECOND_NS
from openvla_ros.contract import Action, ChunkIdentity, ReceivedChunk
from openvla_ros.robot import RobotProfile


class Fate(Enum):
    """What becomes of a chunk, and of the arm."""

    TAKEN = "taken"  # it is played next
    STOP = "stop"  # it says stop, which is obeyed in any order
    DROPPED = "dropped"  # it changes nothing; what plays goes on
    REFUSED = "refused"  # its sender is wrong: the arm stops
    FOREIGN = "foreign"  # another start of the policy: POLICY is over


@dataclass(frozen=True)
class Letter:
    """A chunk's fate, and for those that are not played the rule and the reason."""

    fate: Fate
    refusal: Refusal | None = None


class Inbox:
    """One for a pilot's whole life: order is kept across changes of the driver."""

    def __init__(self, profile: RobotProfile) -> None:
        self._profile = profile
        self._newest: ChunkIdentity | None = None  # of all chunks, whoever drives
        self._session: int | None = None  # whose chunks are played; None: the first to come
        self._since_ns = 0  # POLICY began then: earlier observations are void
        self._observed_ns: int | None = None  # newest taken stamp since then; None: no next one is waited for
        self._proposal: ReceivedChunk | None = None  # newest good chunk while a human drives

    def begin(self, ros_ns: int) -> None:
        """POLICY begins: only chunks observed from now on count, and the first one's session is the one that plays."""
        self._since_ns, self._session, self._observed_ns = ros_ns, None, None

    def forget_proposal(self) -> None:
        """A human begins to drive."""
        self._proposal = None

    def read(self, received: ReceivedChunk, ros_ns: int, max_age_s: float) -> Letter:
        """A chunk while the policy drives."""
        in_order, chunk = self._note(received.identity), received.chunk
        if self._session not in (None, received.identity.session):
            return Letter(Fate.FOREIGN, Refusal("session", "chunks come from another start of the policy. "
                                                           "If that is meant, choose POLICY again."))
        if not chunk.steps:
            self._observed_ns = None  # it said so itself: nothing is overdue
            return Letter(Fate.STOP, Refusal("", f"the policy stopped the arm: {chunk.fault or 'no reason given'}"))
        if not in_order:
            return Letter(Fate.DROPPED, Refusal("order", "a chunk came after a newer one"))
        if (wrong := refuse_content(received, self._profile.base_frame, self._profile.limits)) is not None:
            return Letter(Fate.REFUSED, wrong)
        if (untimely := self._untimely(chunk.observation_stamp_ns, ros_ns, max_age_s)) is not None:
            return Letter(Fate.DROPPED, untimely)
        self._session, self._observed_ns = received.identity.session, chunk.observation_stamp_ns
        return Letter(Fate.TAKEN)

    def overhear(self, received: ReceivedChunk, by_human: bool) -> None:
        """A chunk while the policy does not drive. by_human: somebody else does, and is told what the policy proposes."""
        if self._note(received.identity) and by_human:
            wrong = refuse_content(received, self._profile.base_frame, self._profile.limits)
            self._proposal = received if received.chunk.steps and wrong is None else None

    def proposal(self, ros_ns: int, max_age_s: float) -> Action | None:
        """The first step of the newest good chunk that was overheard, as long as its observation is fresh."""
        if self._proposal is None:
            return None
        age_s = (ros_ns - self._proposal.chunk.observation_stamp_ns) / SECOND_NS
        return self._proposal.chunk.steps[0] if 0.0 <= age_s <= max_age_s else None

    def age_s(self, ros_ns: int) -> float | None:
        """Age of the newest observation that was taken; None when no next chunk is waited for."""
        return None if self._observed_ns is None else (ros_ns - self._observed_ns) / SECOND_NS

    def _note(self, identity: ChunkIdentity) -> bool:
        """Remember the newest chunk. False when this one comes after a newer one of its session."""
        newest = self._newest
        in_order = newest is None or newest.session != identity.session or newest < identity
        if in_order:
            self._newest = identity
        return in_order

    def _untimely(self, stamp_ns: int, ros_ns: int, max_age_s: float) -> Refusal | None:
        """Why a chunk comes at the wrong time."""
        if stamp_ns == 0:
            return Refusal("stamp", "chunk carries no observation stamp (zero). Let the camera driver stamp its images.")
        if stamp_ns < self._since_ns:
            return Refusal("before_switch", "chunk was observed before POLICY was chosen")
        if self._observed_ns is not None and stamp_ns < self._observed_ns:
            return Refusal("order", "chunk's observation is older than that of the chunk before")
        age_s = (ros_ns - stamp_ns) / SECOND_NS
        if age_s < 0.0:
            return Refusal("age", "chunk's observation lies in the future. Synchronise the clocks of camera and robot (chrony).")
        if age_s > max_age_s:
            return Refusal("age", f"chunks arrive older than {max_age_s:g} s. Make the policy faster, or raise max_observation_age_s.")
        return None
