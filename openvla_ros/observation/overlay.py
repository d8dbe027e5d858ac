"""Two pictures in, one picture and a few numbers out: how far the camera is from where it stood in the dataset.

A policy has only seen its training camera; a view that is moved by a hand's breadth costs success without any error. The
reference is a frame of the dataset, the other one comes from the camera that is being placed. The numbers are hints for the hand
that moves the camera: arm and objects differ between the two pictures, so nothing here reaches 100 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from openvla_ros.contract import ByteArray
from openvla_ros.errors import ImageError

Mask = npt.NDArray[np.bool_]
Slopes = npt.NDArray[np.float32]

NEAR_PX = 2
"""Edges of the two pictures that are at most this far apart meet."""

STEEP_PART, FLAT = 0.9, 60.0
"""The tenth of a picture's pixels that is steepest may begin an edge, however dark it is; but nothing flatter than FLAT (a Sobel
response, grey values), which the noise of a webcam does not reach."""

CLEARER_THAN_CHANCE = 0.3
"""A shift is believed when it makes so much more of the edges meet than chance would. Frames of BridgeData and its evaluations: one scene
with other arm poses reaches 0.45 and more, two scenes stay below 0.2."""

FEWEST_EDGES = 0.25
"""Part of the reference's edges that must lie within the shifted picture, or their meeting says nothing."""

SMALLEST_PX = 64

GRID = 8
"""Cells of the grid per side."""

REFERENCE_COLOUR, LIVE_COLOUR, BOTH_COLOUR, GRID_COLOUR = (255, 0, 255), (0, 255, 0), (255, 255, 255), (255, 255, 0)


@dataclass(frozen=True)
class Comparison:
    """How the live picture lies on the reference; pixels are those of the reference.

    edge_overlap: part of the reference's edges that have an edge of the live picture within NEAR_PX, 0..1. edge_chance: what two
    unrelated pictures with so many edges would reach. shift_px: how far the live content lies right of and below the reference's,
    (right, down); None when none makes the edges meet. It knows no rotation and no scale. edge_overlap_shifted: the overlap with the
    shift that was found taken away, believed or not.
    """

    edge_overlap: float
    edge_chance: float
    shift_px: tuple[float, float] | None
    edge_overlap_shifted: float
    size_note: str  # empty when both pictures have the same size

    @property
    def advice(self) -> str:
        """What to do with the camera, in words."""
        if self.shift_px is None:
            return ("no common shift was found: the view is far off, turned, or another scene. Place the camera by eye first, with the "
                    "magenta edges.")
        right, down = self.shift_px
        moves = [f"{abs(amount):.0f} px to the {side}" for amount, side in ((right, "right" if right > 0 else "left"),) if abs(amount) >= 1]
        moves += [f"{abs(amount):.0f} px {side}" for amount, side in ((down, "down" if down > 0 else "up"),) if abs(amount) >= 1]
        if not moves:
            return "no shift of a pixel or more is left. Rotation and distance are for the eye: look at the edges."
        return f"turn the camera {' and '.join(moves)} (as the picture sees it), then look again."


def overlay(reference: ByteArray, live: ByteArray, alpha: float = 0.5) -> tuple[ByteArray, Comparison]:
    """The blended picture, as large as the reference plus a line of legend, and the comparison.

    Both: uint8 [H, W, 3], red first. alpha: weight of the live picture, 0..1. A live picture of another size is scaled to the
    reference's, with bars where its shape differs. Raises ImageError for pictures that are too small to be compared.
    """
    for name, picture in (("reference", reference), ("live", live)):
        if min(picture.shape[:2]) < SMALLEST_PX:
            raise ImageError(f"the {name} picture is {picture.shape[1]}x{picture.shape[0]}; at least {SMALLEST_PX} pixels per side are "
                             "needed to compare edges. Take a frame of full size.")
    fitted, inside = letterbox(live, reference.shape[0], reference.shape[1])
    reference_edges, live_edges = edges(reference), edges(fitted) & _shrunk(inside)
    comparison = compare(reference, fitted, reference_edges, live_edges, inside, size_note(reference, live))
    blend = np.asarray(cv2.addWeighted(fitted, alpha, reference, 1.0 - alpha, 0.0), np.uint8)
    draw_grid(blend)
    both = near(reference_edges) & near(live_edges) & (reference_edges | live_edges)
    blend[live_edges], blend[reference_edges], blend[both] = LIVE_COLOUR, REFERENCE_COLOUR, BOTH_COLOUR
    return np.vstack([blend, legend(blend.shape[1])]), comparison


def letterbox(picture: ByteArray, height: int, width: int) -> tuple[ByteArray, Mask]:
    """The picture scaled into height x width, its shape kept, black bars around; and where it is, [height, width]."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    scaled = picture if scale == 1.0 else cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    fitted, inside = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.bool_)
    fitted[top:top + size[1], left:left + size[0]] = scaled
    inside[top:top + size[1], left:left + size[0]] = True
    return fitted, inside


def size_note(reference: ByteArray, live: ByteArray) -> str:
    """What the sizes of the pictures say about the camera's settings; empty when they are the same."""
    (height, width), (live_height, live_width) = reference.shape[:2], live.shape[:2]
    if (height, width) == (live_height, live_width):
        return ""
    note = f"the live picture is {live_width}x{live_height}, the reference {width}x{height}"
    if abs(live_width / live_height - width / height) > 0.01:
        return (f"{note}: another shape, shown with bars. A policy squeezes the whole picture into a square, so set the camera to the "
                f"reference's shape of {width / height:.3g} to 1.")
    return f"{note}: scaled, the shape is the same."


def edges(picture: ByteArray) -> Mask:
    """Where the picture has an edge [H, W]. The thresholds follow the picture's own contrast, so that a darker room matters little."""
    across, along = _slopes(picture)
    steep = max(FLAT, float(np.quantile(np.abs(across) + np.abs(along), STEEP_PART)))
    return np.asarray(cv2.Canny(across.astype(np.int16), along.astype(np.int16), 0.4 * steep, steep) > 0)


def near(mask: Mask) -> Mask:
    """Within NEAR_PX of it, as a square."""
    side = 2 * NEAR_PX + 1
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0)


def compare(reference: ByteArray, fitted: ByteArray, reference_edges: Mask, live_edges: Mask, inside: Mask, note: str = "") -> Comparison:
    """The numbers. `inside` says where the fitted picture is no bar: only there is anything counted."""
    chance = float(near(live_edges)[inside].mean())
    shift_px = find_shift(reference, fitted, inside)
    back = np.array([[1, 0, -shift_px[0]], [0, 1, -shift_px[1]]], dtype=np.float32)
    size = (inside.shape[1], inside.shape[0])
    moved_edges, moved_inside = (cv2.warpAffine(mask.astype(np.uint8), back, size, flags=cv2.INTER_NEAREST) > 0
                                 for mask in (live_edges, inside))
    shifted = _overlap(reference_edges, moved_edges, moved_inside)
    believed = shifted >= chance + CLEARER_THAN_CHANCE
    return Comparison(_overlap(reference_edges, live_edges, inside), chance, shift_px if believed else None, shifted, note)


def _overlap(reference_edges: Mask, live_edges: Mask, inside: Mask) -> float:
    counted = reference_edges & inside
    if counted.sum() < FEWEST_EDGES * reference_edges.sum() or not counted.any():
        return 0.0
    return float(near(live_edges)[counted].mean())


def find_shift(reference: ByteArray, fitted: ByteArray, inside: Mask) -> tuple[float, float]:
    """(right, down) [px] of the fitted picture's content against the reference's; anything at all where they have nothing in common.

    Phase correlation (Kuglin and Hines 1975) of how steep the pictures are, which light and colour change less than grey values.
    Its response is no measure of trust: unrelated pictures reach the values of related ones.
    """
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    part = np.s_[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    first, second = _steepness(reference[part]), _steepness(fitted[part])
    window = cv2.createHanningWindow((first.shape[1], first.shape[0]), cv2.CV_32F)
    (right, down), _ = cv2.phaseCorrelate(first, second, window)
    return float(right), float(down)


def draw_grid(picture: ByteArray) -> None:
    """Thin lines into the picture, the two middle ones stronger."""
    height, width = picture.shape[:2]
    lines = picture.copy()
    for cell in range(1, GRID):
        x, y = cell * width // GRID, cell * height // GRID
        thickness = 2 if cell * 2 == GRID else 1
        cv2.line(lines, (x, 0), (x, height - 1), GRID_COLOUR, thickness)
        cv2.line(lines, (0, y), (width - 1, y), GRID_COLOUR, thickness)
    cv2.addWeighted(lines, 0.35, picture, 0.65, 0.0, dst=picture)


def legend(width: int) -> ByteArray:
    """One line that says what the colours mean, [24, width, 3]."""
    line, x = np.zeros((24, width, 3), np.uint8), 6
    for words, colour in (("reference edges", REFERENCE_COLOUR), ("live edges", LIVE_COLOUR), ("both", BOTH_COLOUR)):
        cv2.putText(line, words, (x, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
        x += cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0] + 18
    return line


def _grey(picture: ByteArray) -> ByteArray:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))


def _slopes(picture: ByteArray) -> tuple[Slopes, Slopes]:
    grey = cv2.GaussianBlur(_grey(picture), (5, 5), 0)
    return np.asarray(cv2.Sobel(grey, cv2.CV_32F, 1, 0), np.float32), np.asarray(cv2.Sobel(grey, cv2.CV_32F, 0, 1), np.float32)


def _steepness(picture: ByteArray) -> Slopes:
    return np.asarray(np.hypot(*_slopes(picture)), np.float32)


def _shrunk(inside: Mask) -> Mask:
    """Without the rim, where the bars begin: that is no edge of the scene."""
    if inside.all():
        return inside
    return np.asarray(cv2.erode(inside.astype(np.uint8), np.ones((7, 7), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0)
