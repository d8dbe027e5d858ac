"""The fixed camera in front of the arm: MuJoCo casts the rays, numpy shades what they hit. No OpenGL, no display.

Comes in: a Tabletop; goes out: a picture, uint8 [H, W, 3], red first. The look is part of what the default policy was trained on: a
change of view, colours or light makes its checkpoint worthless.
"""

from __future__ import annotations

import mujoco
import numpy as np
import numpy.typing as npt

from openvla_ros.contract import ByteArray, FloatArray
from openvla_ros.errors import ConfigurationError
from openvla_ros.simulation.tabletop import Tabletop

EYE_M, LOOK_AT_M = np.array([1.0, -0.25, 0.75]), np.array([0.25, 0.02, 0.125])
"""Where the camera is, and the point in the middle of its picture, in the frame of the arm's base."""

HALF_VIEW_RAD = np.deg2rad(14.6)
"""From the middle of the picture to the nearer edges: of a wide picture to the upper one, so that it shows what the square one shows."""

LIGHT_M = np.array([0.35, -0.15, 1.6])
"""The lamp above the table."""

AMBIENT, DIFFUSE, SHADOW = 0.42, 0.62, 0.62
"""Brightness of a face turned away from the lamp, what one turned towards it has more, and what a shadow leaves of the table's."""

SHADOW_X_M, SHADOW_Y_M, SHADOW_CELLS = (-0.05, 0.60), (-0.35, 0.35), 80
"""The part of the table on which shadows fall, and into how many cells each side of it is divided."""


class Camera:
    """Pictures of one size. The same state of the same world gives the same picture. One thread at a time may call."""

    def __init__(self, width: int = 128, height: int = 128) -> None:
        """Raises ConfigurationError for a size that is no picture's."""
        if not (8 <= width <= 2048 and 8 <= height <= 2048):
            raise ConfigurationError(f"picture of {width} x {height} pixels, expected 8 to 2048 on each side.")
        self.width, self.height = width, height
        self._rays = np.ascontiguousarray(_directions(width, height))  # [H W, 3]
        to_table_m = np.where(self._rays[:, 2] < -1e-9, -EYE_M[2] / np.minimum(self._rays[:, 2], -1e-9), np.inf)
        self._corners, self._weights = _shadow_lookup(EYE_M[:2] + to_table_m[:, None] * self._rays[:, :2])
        self._to_lamp_m = LIGHT_M - EYE_M
        self._shadow_rays = np.ascontiguousarray(_shadow_rays())

    def picture(self, tabletop: Tabletop) -> ByteArray:
        """What the camera sees now."""
        model = tabletop.model
        geoms, distances_m, normals = _cast(tabletop, EYE_M, self._rays)
        table = model.geom("table").id
        colours = model.geom_rgba[geoms, :3]
        colours[geoms < 0] = model.geom_rgba[table, :3]
        to_lamp = self._to_lamp_m - distances_m[:, None] * self._rays
        facing = np.einsum("ij,ij->i", normals, to_lamp) / np.sqrt(np.einsum("ij,ij->i", to_lamp, to_lamp))
        light = AMBIENT + DIFFUSE * np.maximum(0.0, facing)
        lying = (geoms == table) | (geoms == model.geom("plate").id)
        light[lying] *= self._shadow(tabletop)[lying]
        shaded = colours * (255.0 * light[:, None]).astype(np.float32) + np.float32(0.5)
        picture: ByteArray = np.minimum(shaded, 255.0, out=shaded).astype(np.uint8).reshape(self.height, self.width, 3)
        return picture

    def project(self, point_m: FloatArray) -> tuple[float, float]:
        """Column and row of the pixel at which a point [3] is seen, as fractions: (0, 0) is the middle of the first pixel."""
        right, down, forward = _axes()
        away_m = np.asarray(point_m) - EYE_M
        scale = _focal(self.width, self.height) / float(away_m @ forward)
        return (float(away_m @ right) * scale + (self.width - 1) / 2.0, float(away_m @ down) * scale + (self.height - 1) / 2.0)

    def _shadow(self, tabletop: Tabletop) -> FloatArray:
        """[H W] what the table under each pixel has left of its light."""
        geoms, _, _ = _cast(tabletop, LIGHT_M, self._shadow_rays)
        table, plate = tabletop.model.geom("table").id, tabletop.model.geom("plate").id
        lit = np.where((geoms == table) | (geoms == plate), 1.0, SHADOW)
        shadow: FloatArray = np.einsum("ij,ij->i", lit[self._corners], self._weights)
        return shadow


def _cast(tabletop: Tabletop, origin_m: FloatArray, rays: FloatArray) -> tuple[npt.NDArray[np.int32], FloatArray, FloatArray]:
    """What each ray [N, 3] hits first: number of the geom (-1: nothing), distance in lengths of the ray, and normal [N, 3]."""
    count = len(rays)
    geoms, distances_m, normals = np.empty(count, np.int32), np.empty(count), np.empty((count, 3))
    mujoco.mj_multiRay(tabletop.model, tabletop.data, origin_m, rays.reshape(-1), None, True, -1, geoms, distances_m, normals.reshape(-1),
                       count, mujoco.mjMAXVAL)
    return geoms, distances_m, normals


def _axes() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Right, down and forward of the camera, along the axes of the base."""
    forward = LOOK_AT_M - EYE_M
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return right, np.cross(forward, right), forward


def _focal(width: int, height: int) -> float:
    return 0.5 * min(width, height) / float(np.tan(HALF_VIEW_RAD))


def _directions(width: int, height: int) -> FloatArray:
    """[H W, 3] of length 1, row by row from the upper left."""
    right, down, forward = _axes()
    focal = _focal(width, height)
    columns, rows = (np.arange(width) - (width - 1) / 2.0) / focal, (np.arange(height) - (height - 1) / 2.0) / focal
    rays = forward + rows[:, None, None] * down + columns[None, :, None] * right
    directions: FloatArray = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).reshape(-1, 3)
    return directions


def _shadow_rays() -> FloatArray:
    """[cells^2, 3] from the lamp to the middle of each cell of the table."""
    x_m, y_m = (low + (np.arange(SHADOW_CELLS) + 0.5) * (high - low) / SHADOW_CELLS for low, high in (SHADOW_X_M, SHADOW_Y_M))
    cells = np.stack([*np.meshgrid(x_m, y_m, indexing="ij"), np.zeros((SHADOW_CELLS, SHADOW_CELLS))], axis=-1).reshape(-1, 3)
    rays: FloatArray = cells - LIGHT_M
    return rays


def _shadow_lookup(table_m: FloatArray) -> tuple[FloatArray, FloatArray]:
    """For points of the table [N, 2]: the four nearest cells [N, 4] and their bilinear weights [N, 4]. Outside, the edge goes on."""
    low = np.array([SHADOW_X_M[0], SHADOW_Y_M[0]])
    size = (np.array([SHADOW_X_M[1], SHADOW_Y_M[1]]) - low) / SHADOW_CELLS
    place = np.clip((table_m - low) / size - 0.5, 0.0, SHADOW_CELLS - 1.001)
    corner = place.astype(np.int64)
    share = place - corner
    first = corner[:, 0] * SHADOW_CELLS + corner[:, 1]
    corners = first[:, None] + np.array([0, 1, SHADOW_CELLS, SHADOW_CELLS + 1])
    weights = np.stack([(1.0 - share[:, 0]) * (1.0 - share[:, 1]), (1.0 - share[:, 0]) * share[:, 1],
                        share[:, 0] * (1.0 - share[:, 1]), share[:, 0] * share[:, 1]], axis=-1)
    return corners, weights
