"""Where things lie when an episode begins, drawn from a seed.

Comes in: a seed; goes out: a Layout. Everything in it can be reached with the tool straight down, inside the box of the robot's profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openvla_ros.contract import FloatArray
from openvla_ros.errors import ConfigurationError
from openvla_ros.simulation.task import BLOCK_EDGE_M, COLOURS, PLATE_HEIGHT_M

EVALUATION_SEEDS, TRAINING_SEEDS = range(1_000_000), range(1_000_000, 2**31)
"""Evaluation takes its layouts from the first and training from the second: no layout is in both."""

FIELD_X_M, FIELD_Y_M = (0.18, 0.36), (-0.16, 0.17)
"""Centres of blocks and plate lie in this rectangle. The fingers' outside keeps 3 cm from the box of the profile."""

BLOCKS_APART_M = 0.085
"""Between the centres of two blocks: an open gripper (8.4 cm outside) fits over one without touching the other."""

PLATE_APART_M = 0.105
"""Between the centres of the plate and of a block: 2 cm of table between them."""

START_M, START_SPREAD_M = (0.26, 0.0, 0.17), (0.06, 0.10, 0.04)
"""The tool starts straight down, within the spread of this point on each axis."""

YAW_RAD = 0.35
"""Blocks are turned by up to this to either side. So far the closing fingers turn them straight; near 45 degrees they jam on two edges."""

PRESENT = 3
"""So many of the four blocks are there."""


@dataclass(frozen=True, eq=False)
class Layout:
    """One beginning. Positions in the frame of the arm's base."""

    blocks: Mapping[str, FloatArray]  # colour -> [3] centre
    yaws_rad: Mapping[str, float]  # colour -> turn about z
    plate_m: FloatArray  # [3] centre of the plate's top
    start_m: FloatArray  # [3] the tool, straight down

    @property
    def colours(self) -> tuple[str, ...]:
        """Those that are there, in the order of COLOURS."""
        return tuple(colour for colour in COLOURS if colour in self.blocks)


def layout(seed: int) -> Layout:
    """The layout of a seed, the same for ever. Raises ConfigurationError for a negative one."""
    if seed < 0:
        raise ConfigurationError(f"seed is {seed}, expected 0 or more.")
    random = np.random.default_rng(seed)
    present = [COLOURS[number] for number in random.permutation(len(COLOURS))[:PRESENT]]
    low, high = np.transpose([FIELD_X_M, FIELD_Y_M])
    apart_m = np.full((PRESENT + 1, PRESENT + 1), BLOCKS_APART_M)
    apart_m[0, :] = apart_m[:, 0] = PLATE_APART_M  # the plate is the first
    np.fill_diagonal(apart_m, 0.0)
    while True:  # about one draw in five is good
        places = random.uniform(low, high, size=(PRESENT + 1, 2))
        if (np.linalg.norm(places[:, None] - places[None], axis=-1) >= apart_m).all():
            break
    yaws = random.uniform(-YAW_RAD, YAW_RAD, size=PRESENT)
    start_m = np.array(START_M) + random.uniform(-1.0, 1.0, size=3) * START_SPREAD_M
    return Layout(blocks={colour: np.array([*place, BLOCK_EDGE_M / 2.0]) for colour, place in zip(present, places[1:], strict=True)},
                  yaws_rad={colour: float(yaw) for colour, yaw in zip(present, yaws, strict=True)},
                  plate_m=np.array([*places[0], PLATE_HEIGHT_M]), start_m=start_m)
