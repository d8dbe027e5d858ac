"""The picture: things are where the projection says, in their colours, and the hand is never cut off."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from openvla_ros.contract import ByteArray, FloatArray, Pose
from openvla_ros.errors import ConfigurationError
from openvla_ros.simulation.camera import Camera
from openvla_ros.simulation.scene import layout
from openvla_ros.simulation.tabletop import STRAIGHT_DOWN, Tabletop
from openvla_ros.simulation.task import BLOCK_EDGE_M

STRONGEST = {"red": lambda r, g, b: r > 2 * g and r > 2 * b, "green": lambda r, g, b: g > 1.5 * r and g > 1.5 * b,
             "blue": lambda r, g, b: b > 1.5 * r and b > 1.5 * g, "yellow": lambda r, g, b: r > 3 * b and g > 3 * b and r < 1.5 * g}


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera()


def pixel(camera: Camera, picture: ByteArray, point_m: FloatArray) -> tuple[float, ...]:
    column, row = camera.project(point_m)
    return tuple(float(value) for value in picture[round(row), round(column)])


def test_blocks_and_plate_are_seen_where_they_are(camera: Camera) -> None:
    tabletop, looked_at = Tabletop(), 0
    for seed in range(12):
        tabletop.reset(seed)
        up, _ = tabletop.inverse(  # where the arm hides nothing
            Pose(np.array([0.16, 0.0, 0.29]), STRAIGHT_DOWN), tabletop.arm_positions_rad, np.inf)
        tabletop.set_arm_target(up)
        tabletop.advance(1.0)
        picture, state = camera.picture(tabletop), tabletop.state()
        for colour, place in state.blocks.items():
            assert STRONGEST[colour](*pixel(camera, picture, place)), (seed, colour)
            looked_at += 1
        red, green, blue = pixel(camera, picture, state.plate_m)
        assert min(red, green, blue) > 0.9 * max(red, green, blue)
    assert looked_at == 36


def test_the_same_world_gives_the_same_picture_and_another_a_different_one(camera: Camera, tabletop: Tabletop) -> None:
    picture = camera.picture(tabletop)
    assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, camera.picture(tabletop))
    np.testing.assert_array_equal(picture, Camera().picture(Tabletop(0)))
    tabletop.reset(1)
    assert (picture != camera.picture(tabletop)).any(axis=-1).mean() > 0.05


def test_neither_blocks_nor_the_hand_are_ever_cut_off(camera: Camera) -> None:
    edge_m = BLOCK_EDGE_M / 2.0
    for seed in range(100):
        scene = layout(seed)
        corners = [place + edge_m * np.array(corner) for place in (*scene.blocks.values(), scene.plate_m)
                   for corner in product((-1.4, 1.4), (-1.4, 1.4), (-1.0, 1.0))]
        # The hand at its start and over what it goes to: 5.2 cm to either side, from its tips 1.5 cm below the tool to 5 cm above it.
        tools = [scene.start_m, *(np.array([*place[:2], height_m]) for place in (*scene.blocks.values(), scene.plate_m)
                                  for height_m in (0.02, 0.15))]
        hands = [tool + np.array([0.0, side_m, height_m]) for tool in tools for side_m in (-0.052, 0.052) for height_m in (-0.015, 0.05)]
        for point in corners + hands:
            column, row = camera.project(point)
            assert 0.0 <= column <= 127.0 and 0.0 <= row <= 127.0, (seed, point)


def test_the_gripper_shows_how_far_it_is_open(camera: Camera, tabletop: Tabletop) -> None:
    def between_tips() -> float:
        picture = camera.picture(tabletop).astype(float)
        red, green, blue = np.moveaxis(picture, -1, 0)
        left, right = (red > 2 * green) & (blue > 2 * green), (green > 2 * red) & (blue > 2 * red)
        assert left.sum() >= 8 and right.sum() >= 8
        return float(np.abs(np.nonzero(left)[1].mean() - np.nonzero(right)[1].mean()))

    opened = between_tips()
    tabletop.set_finger_target(0.0)
    tabletop.advance(0.6)
    assert opened - between_tips() > 4.0


def test_the_hand_throws_a_shadow_straight_below(camera: Camera, tabletop: Tabletop) -> None:
    lit = camera.picture(tabletop).astype(float).sum(axis=-1)
    joints, _ = tabletop.inverse(Pose(np.array([0.30, 0.0, 0.10]), STRAIGHT_DOWN), tabletop.arm_positions_rad, np.inf)
    tabletop.set_arm_target(joints)
    tabletop.advance(1.5)
    column, row = camera.project(np.array([0.30, 0.0, 0.0]))
    assert camera.picture(tabletop).astype(float).sum(axis=-1)[round(row), round(column)] < 0.8 * np.median(lit)


def test_a_wide_picture_shows_what_the_square_one_shows(tabletop: Tabletop) -> None:
    square, wide = Camera(96, 96), Camera(144, 96)
    np.testing.assert_array_equal(wide.picture(tabletop)[:, 24:120], square.picture(tabletop))
    for width, height in ((384, 288), (100, 300)):
        camera = Camera(width, height)
        column, row = camera.project(np.array([0.25, 0.02, 0.125]))
        assert (column, row) == pytest.approx(((width - 1) / 2, (height - 1) / 2), abs=1e-6)


@pytest.mark.parametrize(("width", "height"), [(0, 128), (128, 7), (4096, 128)])
def test_a_size_that_is_no_pictures_is_refused(width: int, height: int) -> None:
    with pytest.raises(ConfigurationError, match=f"{width} x {height} pixels"):
        Camera(width, height)
