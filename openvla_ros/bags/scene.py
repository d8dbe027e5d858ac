"""A drawn table with blocks and a gripper that carries one of them into a bowl: a motion and its pictures, plainly synthetic.

Frame: robot base, x forward, y left, z up, metres; the camera stands opposite the robot and looks back at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from openvla_ros.contract import ByteArray, FloatArray

INSTRUCTION = "put the red block in the bowl"

TABLE_COLOUR, WALL_COLOUR, BOWL_COLOUR = (196, 164, 132), (222, 226, 230), (70, 110, 190)
ARM_COLOUR, FINGER_COLOUR = (60, 63, 70), (35, 36, 40)
BLOCK_COLOURS = ((205, 50, 45), (60, 160, 75), (235, 190, 50))
"""The first block is the one that is carried."""

BLOCK_M, FINGER_M = 0.035, 0.012
BOWL_RADIUS_M = 0.05
OPEN_M = 0.05
"""Distance of the fingers when the gripper is fully open."""

HOVER_M, GRASP_M, START = 0.14, 0.02, (0.26, 0.0, 0.16)

# Share of the time at which each leg of the motion ends: over the block, down, grip, up, over the bowl, down, let go, up.
LEGS = (0.0, 0.18, 0.33, 0.39, 0.54, 0.74, 0.87, 0.92, 1.0)

UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Moment:
    """The arm at one instant. gripper: 0 closed .. 1 open. block_m: where the carried block is, its lower side's centre."""

    position_m: FloatArray  # [3]
    yaw_rad: float
    gripper: float
    block_m: FloatArray  # [3]


@dataclass(frozen=True)
class Layout:
    """Where things stand on the table, [2] each."""

    blocks_m: FloatArray  # [3, 2]
    bowl_m: FloatArray


def lay_out(seed: int) -> Layout:
    """Blocks and bowl for a seed, apart from each other."""
    jitter = np.random.default_rng(seed).uniform(-0.015, 0.015, (4, 2))
    places = np.array([[0.24, 0.10], [0.36, 0.02], [0.30, 0.15], [0.27, -0.11]]) + jitter
    return Layout(places[:3], places[3])


def move(layout: Layout, share: float) -> Moment:
    """The arm at a share 0..1 of the motion; it starts and ends every leg at rest."""
    block, bowl = layout.blocks_m[0], layout.bowl_m
    at_block, over_block = (*block, GRASP_M), (*block, HOVER_M)
    in_bowl, over_bowl = (*bowl, GRASP_M + 0.02), (*bowl, HOVER_M)
    places = np.array([START, over_block, at_block, at_block, over_block, over_bowl, in_bowl, in_bowl, (*bowl, 0.1)])
    grippers = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    yaws = np.array([0.0, 0.35, 0.35, 0.35, 0.35, -0.25, -0.25, -0.25, 0.0])
    leg = min(int(np.searchsorted(LEGS, share, side="right")) - 1, len(LEGS) - 2)
    done = float(np.clip((share - LEGS[leg]) / (LEGS[leg + 1] - LEGS[leg]), 0.0, 1.0))
    eased = done * done * (3.0 - 2.0 * done)
    position, gripper, yaw = (table[leg] + eased * (table[leg + 1] - table[leg]) for table in (places, grippers, yaws))
    if share <= LEGS[3]:
        carried = np.array([*block, 0.0])
    elif share <= LEGS[6]:
        carried = position - GRASP_M * UP
    else:
        carried = np.array([*bowl, 0.02])
    return Moment(np.asarray(position), float(yaw), float(gripper), carried)


def draw(layout: Layout, moment: Moment, width: int, height: int) -> ByteArray:
    """The scene as the camera sees it, uint8 [height, width, 3], red first."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = WALL_COLOUR
    camera = _Camera(width, height)
    table = np.array([[0.05, -0.45, 0.0], [0.05, 0.45, 0.0], [0.62, 0.45, 0.0], [0.62, -0.45, 0.0]])
    _fill(picture, camera.project(table), TABLE_COLOUR)
    bowl = np.array([*layout.bowl_m, 0.0])
    _fill(picture, camera.project(_circle(bowl, BOWL_RADIUS_M)), _shade(BOWL_COLOUR, 0.75))
    _fill(picture, camera.project(_circle(bowl + 0.012 * UP, BOWL_RADIUS_M * 0.8)), BOWL_COLOUR)
    _fill(picture, camera.project(_circle(np.array([*moment.position_m[:2], 0.001]), 0.022)), _shade(TABLE_COLOUR, 0.8))
    faces = [face for box, colour in _boxes(layout, moment) for face in _faces(box, colour)]
    for corners, colour in sorted(faces, key=lambda face: -camera.distance(face[0])):
        _fill(picture, camera.project(corners), colour)
    return picture


def _boxes(layout: Layout, moment: Moment) -> Iterator[tuple[FloatArray, tuple[int, int, int]]]:
    """Corners [8, 3] and colour of everything that is a box."""
    for place, colour in zip((moment.block_m, *(np.array([*spot, 0.0]) for spot in layout.blocks_m[1:])), BLOCK_COLOURS, strict=True):
        yield _box(place + BLOCK_M / 2 * UP, (BLOCK_M, BLOCK_M, BLOCK_M), 0.0), colour
    hand = moment.position_m
    side = np.array([-np.sin(moment.yaw_rad), np.cos(moment.yaw_rad), 0.0])
    reach = (BLOCK_M + FINGER_M) / 2 + moment.gripper * (OPEN_M - BLOCK_M) / 2
    for sign in (-1.0, 1.0):
        yield _box(hand + sign * reach * side + 0.025 * UP, (0.02, FINGER_M, 0.06), moment.yaw_rad), FINGER_COLOUR
    yield _box(hand + 0.07 * UP, (0.04, 0.09, 0.03), moment.yaw_rad), ARM_COLOUR
    wrist, shoulder = hand + 0.09 * UP, 0.22 * UP
    for share in np.linspace(0.0, 1.0, 9):  # a forearm of links is plain enough, and needs no box that tilts
        yield _box(wrist + share * (shoulder - wrist), (0.045, 0.045, 0.045), moment.yaw_rad), ARM_COLOUR


class _Camera:
    """A pinhole camera opposite the robot."""

    def __init__(self, width: int, height: int) -> None:
        self._eye = np.array([0.86, 0.10, 0.46])
        forward = np.array([0.27, 0.0, 0.05]) - self._eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        self._axes = np.stack([right, np.cross(forward, right), forward])  # image x, image y (down), depth
        self._focal_px, self._centre = 1.15 * min(width, height * 4 / 3), np.array([width / 2, height / 2])

    def project(self, points: FloatArray) -> FloatArray:
        """Pixels [n, 2] of points [n, 3] in front of the camera."""
        seen = (points - self._eye) @ self._axes.T
        pixels: FloatArray = seen[:, :2] / seen[:, 2:] * self._focal_px + self._centre
        return pixels

    def distance(self, points: FloatArray) -> float:
        """From the camera to the middle of the points [m]."""
        return float(np.linalg.norm(points.mean(axis=0) - self._eye))


def _box(centre: FloatArray, size_m: tuple[float, float, float], yaw_rad: float) -> FloatArray:
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]) * size_m
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    turned: FloatArray = corners @ np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]]) + centre
    return turned


def _faces(box: FloatArray, colour: tuple[int, int, int]) -> Iterator[tuple[FloatArray, tuple[int, int, int]]]:
    """The sides of a box that may be seen from the front and above, lit from above."""
    for corners, light in (((4, 5, 7, 6), 0.85), ((0, 1, 5, 4), 0.7), ((2, 3, 7, 6), 0.7), ((1, 3, 7, 5), 1.0)):
        yield box[list(corners)], _shade(colour, light)


def _circle(centre: FloatArray, radius_m: float) -> FloatArray:
    angles = np.linspace(0.0, 2.0 * np.pi, 48, endpoint=False)
    return centre + radius_m * np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1)


def _fill(picture: ByteArray, pixels: FloatArray, colour: tuple[int, int, int]) -> None:
    cv2.fillConvexPoly(picture, np.rint(pixels * 16).astype(np.int32), colour, lineType=cv2.LINE_AA, shift=4)


def _shade(colour: tuple[int, int, int], light: float) -> tuple[int, int, int]:
    red, green, blue = (round(part * light) for part in colour)
    return red, green, blue
