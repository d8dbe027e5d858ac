"""A WidowX 250s at a table with blocks and a plate, in MuJoCo.

Comes in: a seed, targets for the joints, and time to pass; goes out: joints, scene and contacts. The arm is built from the URDF that
the package ships, so its numbers are those of the kinematics. Nothing here is ROS, and nothing is drawn: that is `camera.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mujoco
import numpy as np

from openvla_ros.contract import FloatArray, Pose
from openvla_ros.errors import StateError
from openvla_ros.share import share_folder
from openvla_ros.simulation.scene import Layout, layout
from openvla_ros.simulation.task import BLOCK_EDGE_M, COLOURS, PLATE_HEIGHT_M, PLATE_RADIUS_M, SceneState

ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
FINGER_JOINTS = ("left_finger", "right_finger")
TOOL_LINK = "wx250s/ee_gripper_link"

TIMESTEP_S = 0.004

RAMP_STEPS = 5
"""A target too far away for a joint's top speed is followed in pieces of so many time steps."""

STRAIGHT_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Rotation of the tool that points at the table: fixed-axis pitch of 90 degrees. The fingers open along y."""

ELBOW_UP = np.array([0.0, -0.4, 0.4, 0.0, 1.5, 0.0])
"""Where the search for joint positions starts without a better seed [rad]."""

RGBA: Mapping[str, tuple[float, float, float, float]] = {
    "red": (0.86, 0.13, 0.12, 1.0), "green": (0.13, 0.62, 0.20, 1.0), "blue": (0.12, 0.29, 0.86, 1.0), "yellow": (0.97, 0.80, 0.08, 1.0),
    "plate": (0.97, 0.97, 0.98, 1.0), "table": (0.62, 0.52, 0.42, 1.0),
    "arm": (0.23, 0.24, 0.27, 1.0), "hand": (0.36, 0.38, 0.42, 1.0),
    "tip_left": (0.95, 0.15, 0.85, 1.0), "tip_right": (0.05, 0.85, 0.90, 1.0),
}

STIFFNESS_NM_RAD, ARMATURE_KG_M2 = (400.0, 400.0, 400.0, 100.0, 100.0, 50.0), (0.1, 0.1, 0.1, 0.02, 0.02, 0.01)
"""Of the six joints, critically damped: they follow with about 35 ms of delay, as a stiff servo with a geared motor does."""

FINGER_STIFFNESS_N_M, FINGER_ARMATURE_KG = 1000.0, 0.2

BLOCK_KG, FINGER_FRICTION, TABLE_FRICTION = 0.025, 0.6, 0.8

PARKED_M = (3.0, 0.0, BLOCK_EDGE_M / 2.0)
"""Blocks that are not there lie here: behind the camera."""

AT_LIMIT_RAD = 0.01
"""A joint counts as at its limit so near to it."""

LEVER_M = 0.1
"""1 rad of rotation counts as much as so many metres in inverse kinematics."""

MAX_ITERATIONS, SOLVED_M = 60, 1e-5
"""Of the search: two or three for a step of a policy."""

ARM_BITS, LOOSE_BITS = 1, 2  # of MuJoCo's contype; the arm does not collide with itself


@dataclass(frozen=True)
class Joints:
    """What the arm's driver would say, for ARM_JOINTS then FINGER_JOINTS: rad, rad/s, N m (fingers: m, m/s, N)."""

    names: tuple[str, ...]
    positions: FloatArray
    velocities: FloatArray
    efforts: FloatArray


@dataclass(frozen=True)
class Troubles:
    """What an operator should know about this instant."""

    at_limit: tuple[str, ...]  # joints at the end of their range
    collisions: tuple[tuple[str, str], ...]  # (part of the arm, what it touches); a block between the fingers is none


class Tabletop:
    """One world. The same seed and the same calls give the same states, with the same version of MuJoCo. One thread at a time."""

    def __init__(self, seed: int = 0) -> None:
        self._model = _model()
        self._data = mujoco.MjData(self._model)
        self._scratch = mujoco.MjData(self._model)  # for inverse kinematics
        model = self._model
        joints = [model.joint(name) for name in ARM_JOINTS + FINGER_JOINTS]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        self._ranges = np.array([joint.range for joint in joints])  # [8, 2]
        self._speeds_rad_s = _joint_speeds()  # [6]
        self._wanted = np.zeros(len(ARM_JOINTS))
        self._arm_motors = np.array([model.actuator(name).id for name in ARM_JOINTS])
        self._finger_motor = model.actuator("left_finger").id
        self._tool = model.body(TOOL_LINK).id
        self._blocks = {colour: model.body(colour).id for colour in COLOURS}
        self._free = {colour: model.joint(colour).qposadr[0] for colour in COLOURS}
        self._colour_of = {body: colour for colour, body in self._blocks.items()}
        self._left, self._right = (model.body(f"wx250s/{name}_link").id for name in FINGER_JOINTS)
        self._plate = model.body("plate").id
        self._arm_bodies = frozenset(number for number in range(model.nbody) if model.body(number).name.startswith("wx250s/"))
        self.reset(seed)

    @property
    def model(self) -> Any:
        """MuJoCo's model: to be read only."""
        return self._model

    @property
    def data(self) -> Any:
        """MuJoCo's state: to be read only."""
        return self._data

    @property
    def time_s(self) -> float:
        """Since the reset."""
        return float(self._data.time)

    @property
    def arm_ranges_rad(self) -> FloatArray:
        """[6, 2] lower and upper limits of ARM_JOINTS."""
        return self._ranges[:6].copy()

    @property
    def finger_range_m(self) -> tuple[float, float]:
        """Positions of left_finger: closed, open."""
        low, high = self._ranges[6]
        return float(low), float(high)

    # ------------------------------------------------------------------ set

    def reset(self, seed: int) -> None:
        """Everything at rest where the seed's layout has it. Raises ConfigurationError for a seed that is none."""
        self.place(layout(seed))

    def place(self, where: Layout) -> None:
        """Everything at rest where a layout has it, the gripper open, the tool straight down."""
        mujoco.mj_resetData(self._model, self._data)
        self.layout = where
        for number, colour in enumerate(COLOURS):
            address = self._free[colour]
            position = where.blocks.get(colour, np.add(PARKED_M, (0.0, 0.2 * number, 0.0)))
            half = 0.5 * where.yaws_rad.get(colour, 0.0)
            self._data.qpos[address:address + 7] = [*position, np.cos(half), 0.0, 0.0, np.sin(half)]
        self._data.mocap_pos[0] = where.plate_m - (0.0, 0.0, PLATE_HEIGHT_M / 2.0)
        joints, _ = self.inverse(Pose(where.start_m, STRAIGHT_DOWN), ELBOW_UP, max_step_rad=np.inf)
        self._data.qpos[self._qpos] = [*joints, self.finger_range_m[1], -self.finger_range_m[1]]
        self.set_arm_target(joints)
        self._data.ctrl[self._arm_motors] = self._wanted
        self.set_finger_target(self.finger_range_m[1])
        mujoco.mj_forward(self._model, self._data)

    def mirror(self, other: Tabletop) -> None:
        """Everything where another world has it now, at rest: a still to draw while that world goes on."""
        self.layout = other.layout
        self._data.qpos[:], self._data.mocap_pos[:] = other.data.qpos, other.data.mocap_pos
        self._data.qvel[:] = 0.0
        mujoco.mj_kinematics(self._model, self._data)

    def set_arm_target(self, positions_rad: Sequence[float] | FloatArray) -> None:
        """Where the six joints are to go, as fast as the URDF lets them; beyond a limit they go to it.

        Raises StateError for another number of joints, NaN and infinity; the target before then stays.
        """
        wanted = np.asarray(positions_rad, dtype=np.float64)
        if wanted.shape != (len(ARM_JOINTS),) or not np.isfinite(wanted).all():
            raise StateError(f"targets of the joints are {wanted.tolist()}, expected {len(ARM_JOINTS)} finite numbers: "
                             f"{', '.join(ARM_JOINTS)}.")
        self._wanted = np.clip(wanted, *self._ranges[:6].T)

    def set_finger_target(self, position_m: float) -> None:
        """Where left_finger is to go; right_finger mirrors it; beyond a limit it goes to that. Raises StateError for NaN and infinity."""
        if not np.isfinite(position_m):
            raise StateError(f"target of left_finger is {position_m}, expected a finite number of metres.")
        self._data.ctrl[self._finger_motor] = np.clip(position_m, *self.finger_range_m)

    def advance(self, duration_s: float) -> None:
        """Let time pass, in whole time steps of 4 ms; the targets hold."""
        left = max(1, round(duration_s / TIMESTEP_S))
        while left:
            missing = self._wanted - self._data.ctrl[self._arm_motors]
            furthest = self._speeds_rad_s * min(left, RAMP_STEPS) * TIMESTEP_S
            steps = min(left, RAMP_STEPS) if (np.abs(missing) > furthest).any() else left
            self._data.ctrl[self._arm_motors] += np.clip(missing, -furthest, furthest)
            mujoco.mj_step(self._model, self._data, steps)
            left -= steps

    # ------------------------------------------------------------------ look

    def joints(self) -> Joints:
        """The joints as they are now."""
        return Joints(ARM_JOINTS + FINGER_JOINTS, self._data.qpos[self._qpos], self._data.qvel[self._dofs],
                      self._data.qfrc_actuator[self._dofs])

    @property
    def arm_positions_rad(self) -> FloatArray:
        """[6] as they are now."""
        positions: FloatArray = self._data.qpos[self._qpos[:6]]
        return positions

    @property
    def opening(self) -> float:
        """Of the gripper, measured: 0 closed .. 1 open."""
        low, high = self.finger_range_m
        return float(np.clip((self._data.qpos[self._qpos[6]] - low) / (high - low), 0.0, 1.0))

    def tool_pose(self) -> Pose:
        """Of ee_gripper_link, measured."""
        return Pose(self._data.xpos[self._tool], self._data.xmat[self._tool].reshape(3, 3))

    def state(self) -> SceneState:
        """The truth about the scene, which no policy may see."""
        return SceneState(self._data.xpos[self._tool].copy(), self.opening,
                          {colour: self._data.xpos[self._blocks[colour]].copy() for colour in self.layout.colours},
                          self._data.mocap_pos[0] + (0.0, 0.0, PLATE_HEIGHT_M / 2.0), self._held())

    def troubles(self) -> Troubles:
        """Limits and collisions of this instant."""
        positions = self._data.qpos[self._qpos[:6]]
        near = (positions < self._ranges[:6, 0] + AT_LIMIT_RAD) | (positions > self._ranges[:6, 1] - AT_LIMIT_RAD)
        collisions = set()
        for one, other in self._touching():
            if one not in self._arm_bodies:
                one, other = other, one
            if one in self._arm_bodies and not (one in (self._left, self._right) and other in self._colour_of):
                collisions.add((self._name(one), self._name(other)))
        return Troubles(tuple(np.array(ARM_JOINTS)[near].tolist()), tuple(sorted(collisions)))

    def _held(self) -> str:
        touched: dict[int, set[int]] = {self._left: set(), self._right: set()}
        for one, other in self._touching():
            for finger, body in ((one, other), (other, one)):
                if finger in touched and body in self._colour_of:
                    touched[finger].add(body)
        return next((self._colour_of[body] for body in sorted(touched[self._left] & touched[self._right])), "")

    def _touching(self) -> set[tuple[int, int]]:
        """Pairs of bodies in contact."""
        contact = self._data.contact
        touching = contact.geom[contact.dist <= 0.0]
        return {(int(one), int(other)) for one, other in self._model.geom_bodyid[touching]}

    def _name(self, body: int) -> str:
        return "table" if body == 0 else str(self._model.body(body).name).removeprefix("wx250s/")

    # ------------------------------------------------------------------ kinematics

    def forward(self, positions_rad: FloatArray) -> Pose:
        """Pose of the tool at joint positions [6]."""
        self._put(positions_rad)
        return Pose(self._scratch.xpos[self._tool], self._scratch.xmat[self._tool].reshape(3, 3))

    def inverse(self, wanted: Pose, seed_rad: FloatArray, max_step_rad: float = 0.6) -> tuple[FloatArray, float]:
        """Joint positions [6] near the seed for a pose of the tool, and what is missing: m, and 0.1 m per rad.

        Damped least squares, inside the joints' ranges; no joint ends further than max_step_rad from the seed.
        """
        low = np.maximum(self._ranges[:6, 0], seed_rad - max_step_rad)
        high = np.minimum(self._ranges[:6, 1], seed_rad + max_step_rad)
        positions = np.clip(seed_rad, low, high)
        linear, angular = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        for _ in range(MAX_ITERATIONS):
            self._put(positions)
            error = _pose_error(wanted, self._scratch.xpos[self._tool], self._scratch.xmat[self._tool].reshape(3, 3))
            if (missing := float(np.linalg.norm(error))) < SOLVED_M:
                break
            mujoco.mj_comPos(self._model, self._scratch)
            mujoco.mj_jacBody(self._model, self._scratch, linear, angular, self._tool)
            jacobian = np.concatenate([linear, LEVER_M * angular])[:, self._dofs[:6]]
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + (1e-7 + 0.01 * missing**2) * np.eye(6), error)
            positions = np.clip(positions + step * min(1.0, 0.3 / max(float(np.abs(step).max()), 1e-9)), low, high)
        return positions, missing

    def _put(self, positions_rad: FloatArray) -> None:
        self._scratch.qpos[self._qpos[:6]] = positions_rad
        mujoco.mj_kinematics(self._model, self._scratch)


def _pose_error(wanted: Pose, position_m: FloatArray, rotation: FloatArray) -> FloatArray:
    """[6] what is missing along and about the axes of the base: m, and rad times LEVER_M."""
    turn = wanted.rotation @ rotation.T
    axis = 0.5 * np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    sine, cosine = float(np.linalg.norm(axis)), 0.5 * (float(np.trace(turn)) - 1.0)
    angle = axis * (np.arctan2(sine, cosine) / sine) if sine > 1e-9 else axis
    return np.concatenate([wanted.position_m - position_m, LEVER_M * angle])


def _urdf() -> Path:
    return share_folder() / "config" / "robots" / "wx250s.urdf"


def _joint_speeds() -> FloatArray:
    """[6] the URDF's limits [rad/s]: the one number that MuJoCo's import leaves out."""
    limits = {joint.get("name"): joint.find("limit") for joint in ElementTree.parse(_urdf()).iter("joint")}
    found = [limits[name] for name in ARM_JOINTS]
    return np.array([float(limit.get("velocity", "0")) for limit in found if limit is not None])


def _model() -> Any:
    """The URDF's arm with motors, in front of it a table, four blocks and a plate."""
    spec = mujoco.MjSpec.from_file(str(_urdf()))
    spec.compiler.fusestatic = False  # else the tool's link would be gone
    spec.compiler.discardvisual = False  # else the painted finger tips would be
    spec.option.timestep = TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    _furnish_arm(spec)
    _motorise(spec)
    world, box, cylinder = spec.worldbody, mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER
    loose: dict[str, Any] = {"contype": LOOSE_BITS, "conaffinity": ARM_BITS | LOOSE_BITS, "condim": 4, "solref": [0.01, 1.0]}
    flat: dict[str, Any] = {"friction": [TABLE_FRICTION, 0.005, 0.0001], "priority": 2, **loose}  # for the rubber of the fingers too
    world.add_geom(name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[5.0, 5.0, 0.1], rgba=RGBA["table"], **flat)
    for colour in COLOURS:
        block = world.add_body(name=colour)
        block.add_freejoint(name=colour)
        block.add_geom(name=colour, type=box, size=[BLOCK_EDGE_M / 2.0] * 3, mass=BLOCK_KG, rgba=RGBA[colour],
                       friction=[TABLE_FRICTION, 0.005, 0.0001], **loose)
    plate = world.add_body(name="plate", mocap=True)
    plate.add_geom(name="plate", type=cylinder, size=[PLATE_RADIUS_M, PLATE_HEIGHT_M / 2.0, 0.0], rgba=RGBA["plate"], **flat)
    return spec.compile()


def _furnish_arm(spec: Any) -> None:
    """What a URDF cannot say: no sag, no collision with itself, colours, and rubber on the fingers."""
    spec.delete(spec.joint("gripper"))  # the motor's horn: nothing is driven by it here
    for body in spec.bodies:
        if body.name == "world":
            continue
        body.gravcomp = 1.0  # the motors of the real arm are stiff
        hand = "finger" in body.name or "gripper_" in body.name
        for geom in body.geoms:
            geom.contype, geom.conaffinity = ARM_BITS, 0
            geom.rgba = RGBA["hand" if hand else "arm"]
    for side in ("left", "right"):
        finger = spec.body(f"wx250s/{side}_finger_link")
        pad = finger.geoms[0]
        pad.condim, pad.friction, pad.priority = 4, [FINGER_FRICTION, 0.02, 0.0001], 1
        # The last 2 cm are painted: a skin around the pad that touches nothing.
        length = 0.02
        finger.add_geom(name=f"tip_{side}", type=mujoco.mjtGeom.mjGEOM_BOX, rgba=RGBA[f"tip_{side}"], contype=0, conaffinity=0, mass=0.0,
                        size=[length / 2.0 + 0.001, pad.size[1] + 0.001, pad.size[2] + 0.001],
                        pos=np.add(pad.pos, (pad.size[0] - length / 2.0, 0.0, 0.0)))


def _motorise(spec: Any) -> None:
    """Position servos, as strong as the URDF's effort limits: the import keeps those as `actfrcrange` of the joints."""
    for name, stiffness, armature in zip(ARM_JOINTS, STIFFNESS_NM_RAD, ARMATURE_KG_M2, strict=True):
        spec.joint(name).armature = armature
        _servo(spec, name, stiffness)
    for name in FINGER_JOINTS:
        spec.joint(name).armature = FINGER_ARMATURE_KG
    _servo(spec, "left_finger", FINGER_STIFFNESS_N_M)
    mirror = spec.add_equality(name="mirror", type=mujoco.mjtEq.mjEQ_JOINT, name1="right_finger", name2="left_finger",
                               solref=[0.008, 1.0])
    mirror.data[:2] = 0.0, -1.0  # right = 0 - 1 left


def _servo(spec: Any, name: str, stiffness: float) -> None:
    motor = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    motor.set_to_position(kp=stiffness, dampratio=1.0)
