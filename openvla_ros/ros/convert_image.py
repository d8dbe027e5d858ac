"""Raw image messages to pixels, through cv_bridge where a ROS installation has it, through our numpy path elsewhere.

Both must give the same picture. cv_bridge checks neither lengths nor row steps, and a build for another numpy than the
installed one fails in strange ways, so it is tried against our path once per encoding and dropped at the first difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from openvla_ros.contract import ByteArray
from openvla_ros.observation.image import check_raw, decode_raw


class ImageConverter:
    """Turns sensor_msgs/Image into pixels. One thread calls it at a time."""

    def __init__(self, bridge: Any | None = None) -> None:
        """bridge: a cv_bridge.CvBridge; None looks for one."""
        self._bridge: Any = bridge if bridge is not None else find_bridge()
        self._proven: set[str] = set()
        self.note = "" if self._bridge is not None else "cv_bridge is not installed; the numpy path gives the same pictures"

    @property
    def backend(self) -> str:
        """"cv_bridge" or "numpy", for diagnostics."""
        return "numpy" if self._bridge is None else "cv_bridge"

    def to_rgb(self, message: Any) -> ByteArray:
        """uint8 [H, W, 3], red first, memory that nobody fills again. Raises ImageError."""
        layout = (message.data, message.height, message.width, message.encoding, message.step)
        if self._bridge is None:
            return decode_raw(*layout)
        check_raw(*layout)  # cv_bridge would take a truncated picture
        if message.encoding in self._proven:
            return np.array(self._bridge.imgmsg_to_cv2(message, "rgb8"))
        return self._prove(message, decode_raw(*layout))

    def _prove(self, message: Any, ours: ByteArray) -> ByteArray:
        try:
            theirs = self._bridge.imgmsg_to_cv2(message, "rgb8")
            agreed = np.array_equal(theirs, ours)
            failure = "another picture"
        except Exception as error:  # its compiled part raises its own kinds, none of which we can name here
            agreed, failure = False, f"{type(error).__name__}: {error}"
        if agreed:
            self._proven.add(message.encoding)
        else:
            self._bridge = None
            self.note = f"cv_bridge gave {failure} for {message.encoding}; the numpy path is used instead"
        return ours


def find_bridge() -> Any | None:
    """A CvBridge, or None where it is not installed or does not work with the installed numpy."""
    try:
        from cv_bridge import CvBridge

        return CvBridge()
    except Exception:  # a build for another numpy raises AttributeError, SystemError and others besides ImportError
        return None
