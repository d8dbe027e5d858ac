"""What a run consists of. No ROS in here, so that its parts can be started before this process has loaded ROS itself."""

from __future__ import annotations

from dataclasses import dataclass

from openvla_ros.robot import GripperProfile
from openvla_ros.ros.processes import Part


@dataclass(frozen=True)
class Film:
    """A topic whose pictures are kept."""

    topic: str
    compressed: bool = False
    reliable: bool = False  # asked for where the publisher is known to offer it; best effort hears every kind


@dataclass(frozen=True)
class Plan:
    """What to run: a recording (`player`), a simulation, or, with neither, a robot that is there already.

    The player is started when the policy is active, and the run ends by itself after it. The simulation starts with the others.
    """

    policy: Part
    command: Part
    player: Part | None
    simulation: Part | None
    gripper: GripperProfile | None  # the simulated one
    seed: int  # of the simulated scene
    namespace: str
    command_topic: str  # watched for silence after the player's end; "" where there is no player
    instruction_topic: str  # where instructions are published; empty where nobody gives one here
    instruction: str  # the first; empty: none
    suggestion: str  # the first where none was given or said until everything was ready; empty: none
    patient: bool  # each further line waits until the instruction before it was carried out or its time has passed
    driver: str  # "policy" or "hold": who drives once everything is ready
    seconds: float | None  # length of the run from the moment of activation; None: until the end or Ctrl-C
    camera_topic: str  # what the player sends there are the frames of the summary
    film: Film | None  # pictures that are kept
    loops: bool  # the player has no end; its clock goes back each round, which puts the driver into HOLD

    @property
    def first(self) -> tuple[Part, ...]:
        """What is started at once: everything but the player."""
        return (self.policy, self.command, *(() if self.simulation is None else (self.simulation,)))
