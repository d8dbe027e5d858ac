"""Steps of one frame in, a drawing to lay over its picture out (SVG): projected where the camera is calibrated, else a small instrument.

The instrument looks from above: up is forward (x), left is left (y), as a person behind the arm sees it. Beside it: height,
rotation about the three base axes, and the gripper's opening.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.spatial.transform import Rotation

from openvla_ros.contract import FloatArray
from openvla_ros.robot import Camera

WIDTH = 512
"""Of the drawing, whatever the picture's size; its height follows the picture's shape."""

STEPS_LONG = 3.0
"""Projected arrows are as long as so many steps: one step of 2 cm is a few pixels."""

RINGS_M = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
FULL_TURN_RAD = 0.25
SHAPE_TOLERANCE = 0.02


def overlay(steps: Mapping[str, FloatArray], picture_shape: tuple[int, ...], camera: Camera | None = None,
            tool_m: FloatArray | None = None) -> tuple[str, bool]:
    """The drawing, and whether the motions are projected. steps: name (also its class) -> [7]; picture_shape: (height, width, ...)."""
    height = round(WIDTH * picture_shape[0] / picture_shape[1])
    arrows = _projected(steps, picture_shape, height, camera, tool_m) if camera is not None and tool_m is not None else ""
    label = "motion: " + "; ".join(f"{name} {' '.join(f'{value:.3g}' for value in step)}" for name, step in steps.items())
    return (f'<svg class="overlay" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
            f"{arrows}{_instrument(steps, height, bool(arrows))}</svg>"), bool(arrows)


def project(points_m: FloatArray, camera: Camera) -> FloatArray:
    """[n, 3] in the base frame -> [n, 2] pixels (right, down) of a picture of the camera's size; NaN behind the camera."""
    seen = Rotation.from_quat(camera.quaternion_xyzw).inv().apply(np.atleast_2d(points_m) - np.array(camera.position_m))
    depth = np.where(seen[:, 2] > 1e-3, seen[:, 2], np.nan)
    return np.stack([camera.fx * seen[:, 0] / depth + camera.cx, camera.fy * seen[:, 1] / depth + camera.cy], axis=1)


def _projected(steps: Mapping[str, FloatArray], picture_shape: tuple[int, ...], height: int, camera: Camera, tool_m: FloatArray) -> str:
    """Arrows from the tool, or "" where they cannot be drawn: another shape of picture, or a tool outside of it."""
    if abs(picture_shape[1] / picture_shape[0] - camera.width / camera.height) > SHAPE_TOLERANCE:
        return ""
    names = [name for name, step in steps.items() if np.isfinite(step[:3]).all()]
    points = np.array([tool_m, *(tool_m + STEPS_LONG * steps[name][:3] for name in names)])
    pixels = project(points, camera) * (WIDTH / camera.width)
    start = pixels[0]
    if not (np.isfinite(pixels).all() and 0.0 <= start[0] <= WIDTH and 0.0 <= start[1] <= height):
        return ""
    return "".join(_arrow(name, start, end) for name, end in zip(names, pixels[1:], strict=True)) + (
        f'<circle class="tool" cx="{start[0]:.1f}" cy="{start[1]:.1f}" r="5"/>')


def _arrow(name: str, start: FloatArray, end: FloatArray, head: float = 9.0) -> str:
    way = end - start
    length = math.hypot(*way)
    if length < 0.5:
        return f'<circle class="rest {name}" cx="{start[0]:.1f}" cy="{start[1]:.1f}" r="3"/>'
    along, head = way / length, min(head, 0.6 * length)
    aside = np.array([-along[1], along[0]])
    left, right = end - head * along + 0.45 * head * aside, end - head * along - 0.45 * head * aside
    path = (f"M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}M{left[0]:.1f} {left[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"
            f"L{right[0]:.1f} {right[1]:.1f}")
    return f'<path class="halo" d="{path}"/><path class="arrow {name}" d="{path}"/>'


def _instrument(steps: Mapping[str, FloatArray], height: int, projected: bool) -> str:
    """In the lower left corner."""
    finite = {name: np.where(np.isfinite(step), step, 0.0) for name, step in steps.items()}
    longest = max((float(np.hypot(step[0], step[1])) for step in finite.values()), default=0.0)
    highest = max((abs(float(step[2])) for step in finite.values()), default=0.0)
    ring_m = next((ring for ring in RINGS_M if max(longest, highest) <= ring), RINGS_M[-1])
    parts = ['<rect class="plate" width="242" height="140" rx="8"/>',
             '<circle class="ring" cx="56" cy="58" r="44"/><path class="ring" d="M56 14V102M12 58H100"/>',
             f'<text x="12" y="132">seen from above{"" if projected else ", not projected"}; ring {ring_m * 100:g} cm</text>',
             '<text x="60" y="11">fwd</text>',
             '<path class="ring" d="M122 14V102M114 58H130"/><text x="122" y="116" text-anchor="middle">up</text>']
    for row, word in enumerate(("roll", "pitch", "yaw")):
        y = 24 + 32 * row
        parts.append(f'<path class="ring" d="M142 {y}H186M164 {y - 5}V{y + 5}"/>'
                     f'<text x="164" y="{y + 19}" text-anchor="middle">{word}</text>')
    parts.append(f'<text x="{200 + 5 * len(finite)}" y="116" text-anchor="middle">grip</text>')
    for number, (name, step) in enumerate(finite.items()):
        middle = np.array([56.0, 58.0])
        parts.append(_arrow(name, middle, middle + 44.0 / ring_m * np.array([-step[1], -step[0]]), 8.0))
        lift = 44.0 * float(np.clip(step[2] / ring_m, -1.0, 1.0))
        aside = 3.0 * (number - (len(finite) - 1) / 2)
        parts.append(f'<path class="level {name}" d="M{122 + aside:.1f} 58V{58 - lift:.1f}"/>')
        for row in range(3):
            turn = 22.0 * float(np.clip(step[3 + row] / FULL_TURN_RAD, -1.0, 1.0))
            parts.append(f'<path class="level {name}" d="M164 {24 + 32 * row + aside:.1f}H{164 + turn:.1f}"/>')
        if np.isfinite(steps[name][6]):
            opening, x = float(np.clip(step[6], 0.0, 1.0)), 200 + 10 * number
            parts.append(f'<rect class="ring" x="{x}" y="14" width="7" height="88"/>'
                         f'<rect class="fill {name}" x="{x}" y="{102 - 88 * opening:.1f}" width="7" height="{88 * opening:.1f}"/>')
    return f'<g class="instrument" transform="translate(8 {height - 148})">{"".join(parts)}</g>'
