"""Every error the package raises on purpose.

A message names what came, what could be taken, and the next step. Catch `OpenvlaRosError` to catch them all.
"""

from __future__ import annotations


class OpenvlaRosError(Exception):
    """Root of the tree. The message is meant to be shown to a user as it is."""


class ConfigurationError(OpenvlaRosError):
    """A parameter, profile or option is unknown, malformed or out of range."""


class DependencyMissing(OpenvlaRosError):
    """An optional package that the chosen mode needs is not installed; the message says how to install it."""


class CheckpointError(OpenvlaRosError):
    """A checkpoint is missing, truncated, foreign, unsafe (pickle) or does not fit its own configuration."""


class UnknownStatistics(CheckpointError):
    """The checkpoint has no action statistics under the asked key; the message lists the keys it has."""


class NotEnoughMemory(CheckpointError):
    """Loading would need more memory than is free; the message names both numbers."""


class ObservationError(OpenvlaRosError):
    """What the camera or the operator sent cannot become an observation."""


class ImageError(ObservationError):
    """An image has an encoding, shape, type or length that cannot be decoded without guessing."""


class InstructionError(ObservationError):
    """An instruction is too long, holds control characters, or spells a special token."""


class ActionError(OpenvlaRosError):
    """A chunk of actions is malformed: wrong length, wrong frame, wrong step duration."""


class StateError(OpenvlaRosError):
    """What was said about the arm cannot be: joint positions or a pose that are not finite, or have the wrong shape."""


class HandoffRefused(OpenvlaRosError):
    """The driver cannot change this way now; the message says why and what to do first."""


class SelfTestFailed(OpenvlaRosError):
    """The policy loaded, but a start-up check says that its actions cannot be trusted."""


class BagError(OpenvlaRosError):
    """A recording is missing, truncated, empty, or lacks what the command needs."""


class TrainingError(OpenvlaRosError):
    """Training cannot go on: it diverged, its state is damaged or of another run, or it did not learn what it should."""
