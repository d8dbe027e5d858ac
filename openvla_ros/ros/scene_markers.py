"""The simulated scene as markers for RViz and for evaluation, and back. Policies do not see it.

One marker per thing, named by its `ns`: each colour that lies on the table, `plate`, `table`, `tool` (the origin of ee_gripper_link),
and `held`, a text with the colour of the block that both fingers touch. What is not there is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from builtin_interfaces.msg import Time
from visualization_msgs.msg import Marker, MarkerArray

from openvla_ros.contract import FloatArray
from openvla_ros.errors import StateError
from openvla_ros.simulation.tabletop import RGBA, Tabletop
from openvla_ros.simulation.task import BLOCK_EDGE_M, COLOURS, PLATE_HEIGHT_M, PLATE_RADIUS_M, SceneState

PLATE, TABLE, TOOL, HELD = "plate", "table", "tool", "held"

UPRIGHT = (1.0, 0.0, 0.0, 0.0)
TABLE_SIZE_M = (0.6, 0.8, 0.01)
TOOL_SIZE_M, TEXT_SIZE_M = 0.012, 0.03
HALF_PLATE_M, ABOVE_TOOL_M = np.array([0.0, 0.0, PLATE_HEIGHT_M / 2.0]), np.array([0.0, 0.0, 0.1])
WHITE = (1.0, 1.0, 1.0, 1.0)


def to_markers(tabletop: Tabletop, stamp: Time, frame_id: str) -> MarkerArray:
    """The scene as it is now."""
    state = tabletop.state()

    def marker(name: str, kind: int, position_m: Sequence[float] | FloatArray, size_m: Sequence[float], colour: Sequence[float],
               turn: Sequence[float] | FloatArray = UPRIGHT) -> Marker:
        made = Marker(ns=name, type=kind, action=Marker.ADD)
        made.header.stamp, made.header.frame_id = stamp, frame_id
        made.pose.position.x, made.pose.position.y, made.pose.position.z = map(float, position_m)
        made.scale.x, made.scale.y, made.scale.z = size_m
        made.color.r, made.color.g, made.color.b, made.color.a = colour
        orientation = made.pose.orientation
        orientation.w, orientation.x, orientation.y, orientation.z = map(float, turn)
        return made

    markers = [marker(TABLE, Marker.CUBE, (0.3, 0.0, -TABLE_SIZE_M[2] / 2.0), TABLE_SIZE_M, RGBA["table"]),
               marker(PLATE, Marker.CYLINDER, state.plate_m - HALF_PLATE_M, (2 * PLATE_RADIUS_M, 2 * PLATE_RADIUS_M, PLATE_HEIGHT_M),
                      RGBA["plate"]),
               marker(TOOL, Marker.SPHERE, state.tool_m, (TOOL_SIZE_M,) * 3, WHITE),
               marker(HELD, Marker.TEXT_VIEW_FACING, state.tool_m + ABOVE_TOOL_M, (0.0, 0.0, TEXT_SIZE_M), WHITE)]
    markers[-1].text = state.held
    if not state.held:
        markers[-1].action = Marker.DELETE
    for colour in COLOURS:
        there = colour in state.blocks
        markers.append(marker(colour, Marker.CUBE, state.blocks[colour], (BLOCK_EDGE_M,) * 3, RGBA[colour],
                              tabletop.data.body(colour).xquat) if there else marker(colour, Marker.CUBE, (0, 0, 0), (0, 0, 0), WHITE))
        if not there:
            markers[-1].action = Marker.DELETE
    return MarkerArray(markers=markers)


def from_markers(message: MarkerArray, opening: float) -> SceneState:
    """The scene out of its markers. opening: of the gripper, measured, 0 closed .. 1 open. Raises StateError when plate or tool lack."""
    there: Mapping[str, Marker] = {marker.ns: marker for marker in message.markers if marker.action == Marker.ADD}
    if lacking := [name for name in (PLATE, TOOL) if name not in there]:
        raise StateError(f"the scene lacks the markers {', '.join(lacking)}; it has {', '.join(there) or 'none'}.")

    def position_m(name: str) -> FloatArray:
        point = there[name].pose.position
        return np.array([point.x, point.y, point.z])

    return SceneState(position_m(TOOL), opening, {colour: position_m(colour) for colour in COLOURS if colour in there},
                      position_m(PLATE) + HALF_PLATE_M, there[HELD].text if HELD in there else "")
