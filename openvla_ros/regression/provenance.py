"""What a run was made with, in plain values: recording, policy, versions. Kept in expectations, so that a difference has a cause."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from openvla_ros import __version__
from openvla_ros.bags.replay import Replay, ReplayedFrame
from openvla_ros.contract import Policy
from openvla_ros.policy.catalogue import PolicySettings

PACKAGES = {"numpy": "numpy", "pillow": "pillow", "opencv": "opencv-python-headless", "rosbags": "rosbags", "torch": "torch",
            "transformers": "transformers", "bitsandbytes": "bitsandbytes"}
"""Name in the file -> distribution. All of them touch the numbers."""


def of_policy(settings: PolicySettings, policy: Policy) -> dict[str, Any]:
    """Of the policy alone; known before the first frame."""
    described: dict[str, Any] = {"name": policy.name, "settings": asdict(settings)}
    if (tell := getattr(policy, "provenance", None)) is not None:
        from openvla_ros.policy.fingerprint import checkpoint_digest
        from openvla_ros.policy.openvla.checkpoint import find_checkpoint  # late: torch

        described |= {"checkpoint": checkpoint_digest(find_checkpoint(settings.checkpoint)), **tell()}
    return {"versions": versions(), "policy": described}


def of_recording(replay: Replay, stride: int, limit: int) -> dict[str, Any]:
    """Of the recording and the choice of its frames; known after the last one. The name is only for people: the digest tells."""
    return {"bag": {"name": replay.recording, "digest": frames_digest(replay.frames), "image_topic": replay.image_topic,
                    "instruction_topic": replay.instruction_topic, "frames": len(replay.frames), "stride": stride, "limit": limit}}


def frames_digest(frames: Sequence[ReplayedFrame]) -> str:
    """16 digits over all that was shown to the policy: stamps, instructions, and the image messages as they were recorded."""
    content = hashlib.sha256()
    for frame in frames:
        content.update(repr((frame.index, frame.stamp_ns, frame.instruction, frame.marks.message if frame.marks else "")).encode())
    return content.hexdigest()[:16]


def versions() -> Mapping[str, str]:
    """Of this package, of Python and of everything that touches the numbers; what is not installed is left out."""
    found = {"openvla_ros": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def as_plain(value: Any) -> Any:
    """The same in what JSON can hold, so that what was written and what was read again compare equal."""
    return json.loads(json.dumps(value))
