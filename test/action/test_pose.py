"""Poses: how a step moves one, what is refused, how far two are apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from openvla_ros.action.pose import distance, from_rpy, moved, to_quaternion
from openvla_ros.contract import Pose
from openvla_ros.errors import StateError


def axis_rotation(axis: int, angle_rad: float) -> np.ndarray:
    """Written out by hand: the second oracle."""
    matrix, (j, k) = np.eye(3), ((axis + 1) % 3, (axis + 2) % 3)
    matrix[j, j] = matrix[k, k] = math.cos(angle_rad)
    matrix[k, j], matrix[j, k] = math.sin(angle_rad), -math.sin(angle_rad)
    return matrix


def test_a_step_moves_along_and_turns_about_base_axes() -> None:
    pose = from_rpy(np.array([0.3, -0.09, 0.26]), np.array([0.1, 1.3, -0.7]))
    after = moved(pose, np.array([0.01, -0.02, 0.03]), np.array([0.2, -0.1, 0.05]))
    assert after.position_m == pytest.approx([0.31, -0.11, 0.29], abs=1e-15)
    turn = axis_rotation(2, 0.05) @ axis_rotation(1, -0.1) @ axis_rotation(0, 0.2)  # Rz Ry Rx
    assert np.abs(after.rotation - turn @ pose.rotation).max() < 1e-15


def test_no_step_is_no_motion_bit_by_bit() -> None:
    pose = from_rpy(np.array([0.3, 0.0, 0.2]), np.array([0.3, 1.4, 0.2]))
    after = moved(pose, np.zeros(3), np.zeros(3))
    assert np.array_equal(after.position_m, pose.position_m) and np.array_equal(after.rotation, pose.rotation)


def test_rotations_stay_rotations_over_an_hour_of_steps() -> None:
    pose, random = Pose(np.zeros(3), np.eye(3)), np.random.default_rng(1)
    for turn in random.normal(scale=0.05, size=(18_000, 3)):
        pose = moved(pose, np.zeros(3), turn)
    assert np.abs(pose.rotation.T @ pose.rotation - np.eye(3)).max() < 1e-11  # refused from 1e-6 on


def test_quaternion_is_xyzw_with_positive_w() -> None:
    for angle_rad in (-3.0, -0.5, 0.0, 0.5, 3.0):
        quaternion = to_quaternion(from_rpy(np.zeros(3), np.array([0.0, angle_rad, 0.0])))
        assert quaternion == pytest.approx([0.0, math.sin(angle_rad / 2), 0.0, math.cos(angle_rad / 2)], abs=1e-15)


@pytest.mark.parametrize("angle_rad", [0.0, 1e-9, 1e-4, 1.0, math.pi / 2, 3.1, math.pi - 1e-6])
def test_distance(angle_rad: float) -> None:
    one = from_rpy(np.array([0.1, 0.2, 0.3]), np.array([0.3, -1.2, 2.0]))
    axis = np.array([1.0, -2.0, 2.0]) / 3.0
    other = Pose(one.position_m + np.array([0.03, 0.0, -0.04]), Rotation.from_rotvec(angle_rad * axis).as_matrix() @ one.rotation)
    assert distance(one, other) == pytest.approx((0.05, angle_rad), abs=1e-14)
    assert distance(other, one) == pytest.approx((0.05, angle_rad), abs=1e-14)


@pytest.mark.parametrize(("position_m", "rotation", "words"), [
    (np.zeros(2), np.eye(3), r"position_m .* \[3\] finite"),
    (np.array([0.0, math.nan, 0.0]), np.eye(3), "position_m .*nan"),
    (np.zeros(3), np.full((3, 3), math.inf), "rotation .*inf"),
    (np.zeros(3), np.eye(4), "rotation"),
    (np.zeros(3), np.diag([1.0, 1.0, -1.0]), "right-handed"),
    (np.zeros(3), np.eye(3) * 1.00001, "orthonormal"),
])
def test_what_is_no_pose_is_refused(position_m: np.ndarray, rotation: np.ndarray, words: str) -> None:
    with pytest.raises(StateError, match=words):
        Pose(position_m, rotation)


def test_a_pose_does_not_change_with_the_buffer_it_came_from() -> None:
    buffer = np.zeros(3)
    pose = Pose(buffer, np.eye(3))
    buffer[0] = 1.0
    assert pose.position_m[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        pose.rotation[0, 0] = 2.0
