"""Layouts: the same for ever, apart enough, and different in training and evaluation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from openvla_ros.errors import ConfigurationError
from openvla_ros.robot import Limits
from openvla_ros.simulation.scene import BLOCKS_APART_M, EVALUATION_SEEDS, PLATE_APART_M, TRAINING_SEEDS, layout
from openvla_ros.simulation.task import COLOURS


def test_three_of_four_blocks_lie_apart_from_each_other_and_from_the_plate() -> None:
    for seed in range(200):
        scene = layout(seed)
        places = list(scene.blocks.values())
        assert len(places) == 3 and set(scene.colours) == set(scene.blocks) < set(COLOURS)
        assert all(np.linalg.norm(one - other) >= BLOCKS_APART_M for one, other in combinations(places, 2))
        assert all(np.linalg.norm((place - scene.plate_m)[:2]) >= PLATE_APART_M for place in places)


def test_everything_lies_inside_the_box_with_room_for_the_fingers(limits: Limits) -> None:
    low, high = np.array(limits.box.low_m), np.array(limits.box.high_m)
    for seed in range(200):
        scene = layout(seed)
        for place in (*scene.blocks.values(), scene.plate_m):
            assert (place[:2] >= low[:2] + 0.03).all() and (place[:2] <= high[:2] - 0.03).all()
        assert (scene.start_m >= low).all() and (scene.start_m <= high).all()


def test_every_colour_is_absent_sometimes_and_yaws_differ() -> None:
    scenes = [layout(seed) for seed in range(40)]
    assert {colour for scene in scenes for colour in set(COLOURS) - set(scene.colours)} == set(COLOURS)
    assert len({yaw for scene in scenes for yaw in scene.yaws_rad.values()}) == 120


def test_a_seed_says_the_same_every_time_and_another_something_else() -> None:
    one, again, other = layout(5), layout(5), layout(6)
    np.testing.assert_array_equal(one.start_m, again.start_m)
    np.testing.assert_array_equal(list(one.blocks.values()), list(again.blocks.values()))
    assert not np.array_equal(one.start_m, other.start_m)


def test_a_seed_is_the_layout_that_it_always_was() -> None:
    """Results are compared by seed: another version of numpy must not draw other numbers."""
    scene = layout(7)
    assert scene.colours == ("red", "green", "blue")
    np.testing.assert_allclose([scene.blocks[colour][:2] for colour in scene.colours],
                               [[0.293261, 0.009659], [0.182123, -0.096507], [0.269437, -0.07832]], atol=1e-6)
    assert scene.yaws_rad == pytest.approx({"red": 0.134422, "green": -0.091325, "blue": -0.209575}, abs=1e-6)
    np.testing.assert_allclose([scene.plate_m, scene.start_m], [[0.263917, 0.142665, 0.004], [0.200448, 0.06601, 0.142357]], atol=1e-6)


def test_training_and_evaluation_share_no_seed() -> None:
    assert EVALUATION_SEEDS.stop <= TRAINING_SEEDS.start


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="seed is -1"):
        layout(-1)
