"""The camera overlay: the numbers for pictures that were moved by known amounts, and the picture itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from openvla_ros.contract import ByteArray
from openvla_ros.errors import ImageError
from openvla_ros.observation.overlay import BOTH_COLOUR, LIVE_COLOUR, REFERENCE_COLOUR, letterbox, overlay, size_note


def scene(seed: int) -> ByteArray:
    """A drawn table top, 640x480: blocks of one colour on a plain ground."""
    random = np.random.default_rng(seed)
    picture = np.full((480, 640, 3), 120, np.uint8)
    for _ in range(30):
        x, y = int(random.integers(0, 600)), int(random.integers(0, 440))
        colour = tuple(map(int, random.integers(0, 256, 3)))
        cv2.rectangle(picture, (x, y), (x + int(random.integers(20, 120)), y + int(random.integers(20, 90))), colour, -1)
    return picture


def moved(picture: ByteArray, right: float, down: float) -> ByteArray:
    """The content of the picture lies so many pixels further right and down; what came in from outside is mirrored."""
    matrix = np.array([[1, 0, right], [0, 1, down]], dtype=np.float32)
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REFLECT), np.uint8)


@pytest.mark.parametrize(("right", "down", "advice"), [
    (0, 0, "no shift of a pixel or more is left"), (24, 0, "turn the camera 24 px to the right (as"),
    (-40, 25, "turn the camera 40 px to the left and 25 px down"), (0, -90, "turn the camera 90 px up")])
def test_a_known_shift_is_found_with_its_direction(right: int, down: int, advice: str) -> None:
    """Content that lies too far right comes to the left when the camera turns right."""
    _, comparison = overlay(scene(1), moved(scene(1), right, down))
    assert comparison.shift_px == pytest.approx((right, down), abs=0.5)
    assert advice in comparison.advice and comparison.size_note == ""
    assert comparison.edge_overlap_shifted > 0.8


def test_the_same_picture_meets_all_edges() -> None:
    _, comparison = overlay(scene(1), scene(1))
    assert comparison.edge_overlap == 1.0 and comparison.edge_chance < 0.4


def test_a_darker_noisier_room_is_the_same_scene() -> None:
    noise = np.random.default_rng(0).normal(0, 5, (480, 640, 3))
    dark = np.clip(moved(scene(1), -30, 12) * 0.6 + noise, 0, 255).astype(np.uint8)
    _, comparison = overlay(scene(1), dark)
    assert comparison.shift_px == pytest.approx((-30, 12), abs=0.5)


@pytest.mark.parametrize("seed", range(2, 8))
def test_another_scene_gives_no_shift_and_no_more_than_chance(seed: int) -> None:
    _, comparison = overlay(scene(1), scene(seed))
    assert comparison.shift_px is None and "no common shift" in comparison.advice
    assert comparison.edge_overlap == pytest.approx(comparison.edge_chance, abs=0.15)


@pytest.mark.parametrize("picture", [np.zeros((480, 640, 3), np.uint8), np.full((480, 640, 3), 255, np.uint8)])
def test_an_empty_picture_is_met_by_nothing(picture: ByteArray) -> None:
    for reference, live in ((scene(1), picture), (picture, scene(1)), (picture, picture)):
        _, comparison = overlay(reference, live)
        assert comparison.edge_overlap == 0.0 and comparison.shift_px is None


def test_the_picture_shows_both_their_edges_and_a_legend() -> None:
    reference = np.zeros((256, 320, 3), np.uint8)
    live = reference.copy()
    reference[:, 100:], live[:, 200:] = 200, 200
    drawn, _ = overlay(reference, live, alpha=0.25)
    assert drawn.shape == (256 + 24, 320, 3) and drawn.dtype == np.uint8
    assert drawn[50, 150].tolist() == [150, 150, 150], "three quarters of the reference, one of the live picture"
    assert (drawn[50, 97:104] == REFERENCE_COLOUR).all(axis=1).any() and (drawn[50, 197:204] == LIVE_COLOUR).all(axis=1).any()
    assert (drawn[256:] == REFERENCE_COLOUR).all(axis=2).any() and (drawn[256:] == LIVE_COLOUR).all(axis=2).any()
    same, _ = overlay(reference, reference)
    assert (same[50, 97:104] == BOTH_COLOUR).all(axis=1).any() and not (same[:256] == LIVE_COLOUR).all(axis=2).any()
    assert reference[50, 50].tolist() == [0, 0, 0], "the pictures that came in are not drawn on"


def test_another_shape_gets_bars_that_are_no_edges() -> None:
    wide = np.asarray(cv2.resize(scene(1), (1280, 960)), np.uint8)[120:840]
    drawn, comparison = overlay(scene(1), wide)
    assert comparison.size_note.startswith("the live picture is 1280x720, the reference 640x480: another shape")
    assert "1.33 to 1" in comparison.size_note
    assert not (drawn[:62] == LIVE_COLOUR).all(axis=2).any() and not (drawn[418:480] == LIVE_COLOUR).all(axis=2).any()
    assert comparison.shift_px == pytest.approx((0, 0), abs=0.5) and comparison.edge_overlap > 0.9


def test_another_size_of_the_same_shape_is_scaled() -> None:
    half = np.asarray(cv2.resize(moved(scene(1), 20, -10), (320, 240), interpolation=cv2.INTER_AREA), np.uint8)
    _, comparison = overlay(scene(1), half)
    assert comparison.size_note == "the live picture is 320x240, the reference 640x480: scaled, the shape is the same."
    assert comparison.shift_px == pytest.approx((20, -10), abs=0.7), "in pixels of the reference"


@pytest.mark.parametrize(("shape", "rows", "columns"), [((100, 200), (100, 300), (0, 400)), ((200, 100), (0, 400), (100, 300)),
                                                        ((64, 64), (0, 400), (0, 400))])
def test_letterbox_keeps_the_shape_in_the_middle(shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    fitted, inside = letterbox(np.full((*shape, 3), 9, np.uint8), 400, 400)
    expected = np.zeros((400, 400), np.bool_)
    expected[rows[0]:rows[1], columns[0]:columns[1]] = True
    assert (inside == expected).all() and (fitted[inside] == 9).all() and not fitted[~inside].any()


def test_a_picture_too_small_to_have_edges_is_refused() -> None:
    with pytest.raises(ImageError, match="the live picture is 32x32; at least 64"):
        overlay(scene(1), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ImageError, match="the reference picture is 640x10"):
        overlay(np.zeros((10, 640, 3), np.uint8), scene(1))


def test_nearly_the_same_shape_is_the_same() -> None:
    assert "the shape is the same" in size_note(np.zeros((480, 640, 3), np.uint8), np.zeros((224, 299, 3), np.uint8))


@pytest.mark.shared
def test_real_frames_of_one_scene_and_of_others(shared: Path, bridge_frames: Callable[[str], list[ByteArray]]) -> None:
    frames = bridge_frames("bridge_v2_broccoli_640x480")
    start, end = frames[0], frames[-1]  # arm and broccoli moved in between, the camera did not
    _, same = overlay(start, end)
    assert same.edge_overlap > 0.7 and same.shift_px == pytest.approx((0, 0), abs=0.5)
    _, turned = overlay(start, moved(end, 33, -21))
    assert turned.shift_px == pytest.approx((33, -21), abs=0.5) and turned.edge_overlap < 0.4
    for path in (shared / "data" / "frames").glob("*.png"):
        with Image.open(path) as picture:
            other = np.asarray(picture.convert("RGB"))
        _, comparison = overlay(other, start)
        assert comparison.shift_px is None, path.name


@pytest.fixture
def bridge_frames(shared: Path) -> Callable[[str], list[ByteArray]]:
    """All pictures of a recording."""
    from openvla_ros.bags.frames import frames, select
    from openvla_ros.bags.read import Recording

    def read(name: str) -> list[ByteArray]:
        with Recording(shared / "data" / "bags" / name) as recording:
            return [frame.rgb for frame in frames(recording, select(recording)) if frame.rgb is not None]

    return read
