"""The scripted expert: state of the scene and task in, the next step out. It makes the data that the default policy learns from.

A pure function without memory, and made for a pupil that has none either and sees only a picture that is half a step old: states
that look alike get steps that are alike, the descent is a funnel, and while the fingers close the hand already rises a little, so
that no picture of a gripped block says "stay".
"""

from __future__ import annotations

import numpy as np

from openvla_ros.contract import Action, FloatArray
from openvla_ros.errors import StateError
from openvla_ros.simulation.task import BLOCK_EDGE_M, HOVER_M, OPENED, PLATE_HEIGHT_M, SceneState, Task, is_placed

GAIN, LONGEST_STEP_M = 0.42, 0.032
"""Share of the way that is left taken in one step, and the longest step. The picture is old by nearly a step: 0.25 would creep up to
the goal, 0.5 overshoots it by a quarter."""

TRAVEL_M = 0.12
"""Height of the tool over the table on its way: a carried block passes 6 cm over the others."""

LIFTED_M = 0.15
"""Height of the tool where a picked block is shown."""

SLOPE, FUNNEL_M = 3.0, 0.004
"""Walls of the funnel over a goal: so steep, from so far beside it on. A place to let go may be missed by more."""

GRASP_M, CLOSING_RISE_M = 0.008, 0.010
"""Height of the tool over the centre of a block where it closes, and how much higher it is when it has closed on it."""

CLOSE_XY_M, CLOSE_Z_M = 0.010, 0.009
"""The fingers close so near beside and above that place."""

GRIPPED = 0.55
"""Opening of the fingers around a block."""

RELEASE_M, PLATE_FUNNEL_M = 0.003, 0.012
"""Room under a block over the plate where the hand no longer goes down, and from where beside the middle its funnel begins."""

RELEASE_XY_M, RELEASE_Z_M = 0.035, 0.025
"""The fingers open as soon as a block is so near beside the middle of the plate, and so much higher than that place. Far wider than the
hand comes by itself: nobody can tell a last centimetre from a picture, so wherever the hand may come to rest over the plate they open."""

ASIDE = 0.2
"""A hand that has just gripped goes toward the plate by so much of the way even while it must first go up: a step straight up over the
table and one straight down over the plate would begin alike."""

LOWEST_M = 0.024
"""Height of the tool over the table at which the finger tips still clear the plate by 5 mm: pressed on it, they could not open."""

EASE_M = 0.006
"""The hand rises a little while the fingers open, for the same reason."""

DROP_M, DROP_Z_M = 0.012, 0.009
"""Room under a block that was taken by mistake when it is let go, and how much more it may be."""


def act(state: SceneState, task: Task) -> Action:
    """The next step of 0.2 s. It never turns the hand. Raises StateError when the named block is not there."""
    if task.colour not in state.blocks:
        raise StateError(f"the task is about the {task.colour} block, the scene has {', '.join(state.blocks) or 'no blocks'}.")
    if state.held and (state.held != task.colour or task.kind == "reach"):
        return _put_down(state, state.held)
    if task.kind == "place" and is_placed(state, task.colour):
        return _leave(state)
    if state.held:
        return _lift(state) if task.kind == "pick" else _carry(state, task.colour)
    block_m = state.blocks[task.colour]
    if task.kind == "place" and state.opening < OPENED and _over_plate(state, block_m):  # it falls
        return _leave(state)
    if task.kind == "reach":
        return _toward(state, _above(block_m, HOVER_M), 1.0)
    return _grasp(state, block_m)


def _grasp(state: SceneState, block_m: FloatArray) -> Action:
    grasp_m = _above(block_m, GRASP_M)
    closed = min(1.0, (1.0 - state.opening) / (1.0 - GRIPPED))  # 1: on a block
    beside_m = _beside_m(state.tool_m, grasp_m)
    above_m = state.tool_m[2] - grasp_m[2]
    if beside_m < CLOSE_XY_M + 0.004 * closed and above_m < CLOSE_Z_M + 1.4 * CLOSING_RISE_M * closed and state.opening > GRIPPED - 0.15:
        return _toward(state, _above(grasp_m, CLOSING_RISE_M * closed), 0.0)
    if state.opening < OPENED:  # it missed, or has just let go: not onto the block with closed fingers
        grasp_m = _above(grasp_m, HOVER_M)
    return _toward(state, grasp_m, 1.0)


def _lift(state: SceneState) -> Action:
    return _step(state, np.array([*state.tool_m[:2], LIFTED_M]), 0.0)


def _carry(state: SceneState, colour: str) -> Action:
    """Over the plate and down on it; let go there."""
    goal_m = np.array([*state.plate_m[:2], _height_m(state, colour, PLATE_HEIGHT_M + RELEASE_M)])
    there = _over_plate(state, state.blocks[colour]) and state.tool_m[2] - goal_m[2] < RELEASE_Z_M
    return _toward(state, goal_m, 1.0 if there else 0.0, PLATE_FUNNEL_M, ASIDE)


def _put_down(state: SceneState, colour: str) -> Action:
    """Straight down with a block that was taken by mistake, and let it go."""
    goal_m = np.array([*state.tool_m[:2], _height_m(state, colour, DROP_M)])
    return _step(state, goal_m, 1.0 if state.tool_m[2] - goal_m[2] < DROP_Z_M else 0.0)


def _height_m(state: SceneState, colour: str, room_m: float) -> float:
    """Of the tool over the table when there is `room_m` under the held block."""
    below_m = state.tool_m[2] - state.blocks[colour][2] + BLOCK_EDGE_M / 2.0  # from the tool to the block's underside
    return float(max(LOWEST_M, below_m + room_m))


def _over_plate(state: SceneState, block_m: FloatArray) -> bool:
    return bool(np.hypot(*(block_m - state.plate_m)[:2]) < RELEASE_XY_M)


def _leave(state: SceneState) -> Action:
    """Open, then straight up: first the fingers, then the hand."""
    opened = float(np.clip((state.opening - 0.65) / 0.2, 0.0, 1.0)) if not state.held else 0.0
    rise_m = EASE_M + opened * (TRAVEL_M - EASE_M - state.tool_m[2])
    return _step(state, _above(state.tool_m, rise_m), 1.0)


def _toward(state: SceneState, goal_m: FloatArray, gripper: float, funnel_m: float = FUNNEL_M, aside: float = 0.0) -> Action:
    """Through the funnel over a goal: high while far beside it, sideways only as far as the height allows, or by the share `aside`."""
    beside_m = _beside_m(state.tool_m, goal_m)
    wanted_z_m = max(goal_m[2], min(TRAVEL_M, goal_m[2] + SLOPE * max(0.0, beside_m - funnel_m)))
    too_low_m = wanted_z_m - state.tool_m[2]
    sideways = float(np.clip(1.0 - (too_low_m - 0.015) / 0.03, aside, 1.0))
    waypoint_m = np.array([*(state.tool_m[:2] + sideways * (goal_m - state.tool_m)[:2]), wanted_z_m])
    return _step(state, waypoint_m, gripper)


def _beside_m(one_m: FloatArray, other_m: FloatArray) -> float:
    """Distance on the table. Along x it counts for less: the fingers are wide there, and close along y."""
    return float(np.hypot(0.7 * (one_m[0] - other_m[0]), one_m[1] - other_m[1]))


def _above(point_m: FloatArray, height_m: float) -> FloatArray:
    return np.array([point_m[0], point_m[1], point_m[2] + height_m])


def _step(state: SceneState, goal_m: FloatArray, gripper: float) -> Action:
    step_m = GAIN * (goal_m - state.tool_m)
    length_m = float(np.linalg.norm(step_m))
    return Action(step_m * min(1.0, LONGEST_STEP_M / max(length_m, 1e-12)), np.zeros(3), gripper)
