"""How a pose moves, turns into message numbers, and how far two poses are apart. Rotations are scipy's."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

from openvla_ros.contract import FloatArray, Pose


def moved(pose: Pose, translation_m: FloatArray, rotation_rad: FloatArray) -> Pose:
    """The pose one step further, as BridgeData's robot integrates its targets.

    p_new = p + translation_m and R_new = Rz(yaw) Ry(pitch) Rx(roll) R: both along and about base axes, the rotation turns the
    end effector about its own origin. rotation_rad: [3] fixed-axis roll, pitch, yaw.
    """
    return Pose(pose.position_m + translation_m, Rotation.from_euler("xyz", rotation_rad).as_matrix() @ pose.rotation)


def from_rpy(position_m: FloatArray, rpy_rad: FloatArray) -> Pose:
    """A pose out of fixed-axis roll, pitch, yaw [3], as URDF writes them: R = Rz(yaw) Ry(pitch) Rx(roll)."""
    return Pose(position_m, Rotation.from_euler("xyz", rpy_rad).as_matrix())


def to_quaternion(pose: Pose) -> FloatArray:
    """[4] x, y, z, w of the rotation, as geometry_msgs/Quaternion; w is never negative."""
    quaternion: FloatArray = Rotation.from_matrix(pose.rotation).as_quat()
    return -quaternion if quaternion[3] < 0.0 else quaternion


def distance(one: Pose, other: Pose) -> tuple[float, float]:
    """How far two poses are apart: between the origins [m], and the angle of the rotation from one to the other, 0..pi [rad]."""
    between = one.rotation.T @ other.rotation
    sine = math.hypot(between[2, 1] - between[1, 2], between[0, 2] - between[2, 0], between[1, 0] - between[0, 1])
    return (float(np.linalg.norm(other.position_m - one.position_m)),
            math.atan2(sine, float(np.trace(between)) - 1.0))  # atan2: the arc cosine of the trace alone is blind near 0 and pi
