"""Joint positions to end-effector pose and back, from a URDF. The only file that knows pinocchio, and it imports it late.

Comes in: joint positions or a target pose; goes out: a pose, or a Solution. The inverse starts at the previous joint positions
and never leaves a box around them, so what it cannot reach is a verdict and never a jump to another branch. Whether to use a
solution that falls short is the caller's decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from openvla_ros.action.pose import distance
from openvla_ros.contract import FloatArray, Pose
from openvla_ros.errors import ConfigurationError, DependencyMissing, StateError

LEVER_M = 0.1
"""Weighs rotation against translation where one must yield to the other: 1 rad counts as much as this many metres."""

TOLERANCE_M, TOLERANCE_RAD = 1e-5, 1e-5
"""A target is reached within these. A servo with 4096 positions per turn resolves 1.5e-3 rad."""

MAX_ITERATIONS = 50
"""A step of a policy takes 3 or 4. What takes more than this is going nowhere."""

NEAR_SINGULARITY_M = 0.01
"""Smallest singular value below which a failure is blamed on a singularity: 1 cm of motion would ask for 1 rad or more."""

NO_GAIN = 1e-5
"""A step that takes less than this fraction off the squared error ends the search: it stands at the edge of what can be reached."""

REST = 1e-9
"""Joint motion [rad, m] that is none."""


@dataclass(frozen=True)
class JointLimits:
    """Limits from the URDF, each [n] in the order of the joint names: rad, rad, rad/s, N m (prismatic: m, m, m/s, N)."""

    lower: FloatArray
    upper: FloatArray
    velocity: FloatArray
    effort: FloatArray

    def __post_init__(self) -> None:
        self.lower.flags.writeable = self.upper.flags.writeable = self.velocity.flags.writeable = self.effort.flags.writeable = False


@dataclass(frozen=True)
class Solution:
    """The joint positions nearest to a target pose. Not reached: `rule` names what was in the way, `reason` says it in words.

    rule: `joint_step` (further than a call may move), `singularity` (the same, because the arm is near one), `joint_limit`, or
    `reach` (no motion brings it closer: too far away, or a turn that a singular arm cannot make); empty when reached.
    smallest_singular_value: of the Jacobian at `positions` with rotations weighed by LEVER_M, in metres per radian of joint
    motion; 0 at a singularity. Its inverse is the joint motion that the worst direction needs per metre.
    """

    positions: FloatArray  # [n] no joint further from the seed than a call may move; inside the limits when reached
    pose: Pose  # of those positions
    reached: bool
    rule: str
    reason: str
    position_error_m: float
    rotation_error_rad: float
    smallest_singular_value: float
    iterations: int

    def __post_init__(self) -> None:
        self.positions.flags.writeable = False


class Kinematics:
    """One arm: the joints between a base link and an end-effector link of a URDF.

    joint_names: their order is the order of every [n] array here. base_link: poses are seen from it; empty for the URDF's root.
    Joints of the URDF that are not named (gripper, a second arm) do not matter; a movable joint between base_link and ee_link
    that is not named, or a named one that is elsewhere, is refused. One thread at a time may call.

    Raises DependencyMissing without pinocchio, ConfigurationError for a URDF or names that do not fit.
    """

    def __init__(self, urdf_text: str, ee_link: str, joint_names: Sequence[str], base_link: str = "") -> None:
        try:
            import pinocchio
        except ImportError as error:
            raise DependencyMissing("the arm's kinematics need pinocchio. Install it (pip install 'openvla-ros[kinematics]', or apt "
                                    "install ros-$ROS_DISTRO-pinocchio), or use an output in end-effector space.") from error
        self._pin: Any = pinocchio
        self.joint_names = tuple(joint_names)
        model = self._read(urdf_text)
        base, tip = self._frame(model, base_link), self._frame(model, ee_link)
        self._require_chain(model, base, tip)
        others = [joint for joint in range(1, model.njoints) if model.names[joint] not in self.joint_names]
        self._model = pinocchio.buildReducedModel(model, others, pinocchio.neutral(model))
        self._data = self._model.createData()
        joints = [self._model.joints[self._model.getJointId(name)] for name in self.joint_names]
        self._order = np.array([joint.idx_q for joint in joints])  # our order -> the model's: positions and velocities alike
        self._tip = self._model.getFrameId(model.frames[tip].name, pinocchio.FrameType.BODY)
        pinocchio.framesForwardKinematics(self._model, self._data, pinocchio.neutral(self._model))
        frame = self._model.getFrameId(model.frames[base].name, pinocchio.FrameType.BODY)
        self._base = self._data.oMf[frame].copy()  # no named joint moves it
        limits = (self._model.lowerPositionLimit, self._model.upperPositionLimit, self._model.velocityLimit, self._model.effortLimit)
        self.limits = JointLimits(*(np.array(limit)[self._order] for limit in limits))

    def forward(self, positions: FloatArray) -> Pose:
        """Pose of the end-effector link, seen from the base link. positions: [n]. Raises StateError."""
        tip = self._base.actInv(self._place(self._checked(positions)))
        return Pose(tip.translation, tip.rotation)

    def inverse(self, target: Pose, seed: FloatArray, max_joint_step: float | FloatArray = 0.5) -> Solution:
        """The joint positions nearest to the target that can be reached from the seed without a jump.

        seed: [n], the previous solution or what was measured. max_joint_step: how far each joint may move away from it, in rad
        (prismatic: m), one for all or [n]; infinity for a search that nothing follows at once. A seed outside the joint limits
        is led back at that pace. Damped least squares (Levenberg-Marquardt) in that box. Raises StateError.
        """
        seed, limits = self._checked(seed), self.limits
        reach = np.asarray(max_joint_step, dtype=np.float64)
        if not (reach > 0.0).all():  # also refuses NaN
            raise StateError(f"max_joint_step is {reach.tolist()}, expected numbers above 0.")
        lower, upper = (np.clip(limit, seed - reach, seed + reach) for limit in (limits.lower, limits.upper))
        wanted = self._base * self._pin.SE3(target.rotation, target.position_m)
        positions, damping, iterations = np.clip(seed, lower, upper), 1.0, 0
        error = self._error(positions, wanted)
        while not _small(error) and iterations < MAX_ITERATIONS:
            iterations += 1
            jacobian = self._jacobian(positions)
            free = ~_blocked(jacobian.T @ error, positions, lower, upper)
            step = _damped_step(jacobian * free, error, damping)
            candidate = np.clip(positions + step, lower, upper)
            if np.abs(candidate - positions).max() < REST:
                break
            candidate_error = self._error(candidate, wanted)
            gain = 1.0 - (candidate_error @ candidate_error) / (error @ error)
            if gain > 0.0:
                positions, error, damping = candidate, candidate_error, damping * 0.2
            else:
                damping *= 10.0
            if 0.0 < gain < NO_GAIN:
                break
        return self._solution(target, positions, error, (lower, upper), iterations)

    def _solution(self, target: Pose, positions: FloatArray, error: FloatArray, box: tuple[FloatArray, FloatArray],
                  iterations: int) -> Solution:
        """Measure what was found, and name what was in the way if that is not the target."""
        pose, jacobian = self.forward(positions), self._jacobian(positions)
        position_error_m, rotation_error_rad = distance(pose, target)
        singular_value = float(np.linalg.svd(jacobian, compute_uv=False)[-1])
        outside = (positions < self.limits.lower) | (positions > self.limits.upper)
        at_limit = _blocked(jacobian.T @ error, positions, self.limits.lower, self.limits.upper)
        at_step = _blocked(jacobian.T @ error, positions, *box) & ~at_limit
        if outside.any():
            rule, reason = "joint_limit", f"{self._named(outside, positions)} outside the joint limits"
        elif _small(error):
            rule, reason = "", ""
        elif at_step.any() and singular_value < NEAR_SINGULARITY_M:
            rule, reason = "singularity", f"{self._named(at_step)} would have to move too fast near a singularity"
        elif at_step.any():
            rule, reason = "joint_step", f"{self._named(at_step)} would have to move too fast"
        elif at_limit.any():
            rule, reason = "joint_limit", f"{self._named(at_limit, positions)} at the joint limit"
        else:
            rule, reason = "reach", (f"no joint motion brings the hand closer than {position_error_m:.4f} m and "
                                     f"{rotation_error_rad:.3f} rad: out of reach, or held by a singularity")
        return Solution(positions, pose, not rule, rule, reason, position_error_m, rotation_error_rad, singular_value, iterations)

    def _named(self, mask: npt.NDArray[np.bool_], positions: FloatArray | None = None) -> str:
        numbers = np.flatnonzero(mask)
        values = [""] * len(numbers) if positions is None else [f" at {positions[number]:.3f}" for number in numbers]
        return ", ".join(f"{self.joint_names[number]}{value}" for number, value in zip(numbers, values, strict=True))

    def _checked(self, positions: FloatArray) -> FloatArray:
        values = np.array(positions, dtype=np.float64)
        if values.shape != (len(self.joint_names),) or not np.isfinite(values).all():
            raise StateError(f"joint positions are {values.tolist()}, expected {len(self.joint_names)} finite numbers: "
                             f"{', '.join(self.joint_names)}.")
        return values

    def _in_model_order(self, positions: FloatArray) -> FloatArray:
        q = np.empty(len(positions))
        q[self._order] = positions
        return q

    def _place(self, positions: FloatArray) -> Any:
        """The tip in the URDF's root frame, as pinocchio's SE3. It is overwritten by the next call."""
        self._pin.framesForwardKinematics(self._model, self._data, self._in_model_order(positions))
        return self._data.oMf[self._tip]

    def _error(self, positions: FloatArray, wanted: Any) -> FloatArray:
        """[6] what is missing to the wanted pose along and about the root's axes: m, and rad times LEVER_M."""
        tip = self._place(positions)
        turn = self._pin.log3(wanted.rotation @ tip.rotation.T)
        return np.concatenate([wanted.translation - tip.translation, LEVER_M * turn])

    def _jacobian(self, positions: FloatArray) -> FloatArray:
        """[6, n] how the weighed pose of `_error` changes with each joint."""
        aligned = self._pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        jacobian: FloatArray = self._pin.computeFrameJacobian(
            self._model, self._data, self._in_model_order(positions), self._tip, aligned)[:, self._order]
        jacobian[3:] *= LEVER_M
        return jacobian

    def _read(self, urdf_text: str) -> Any:
        try:
            return self._pin.buildModelFromXML(urdf_text)
        except ValueError as error:
            raise ConfigurationError(f"the URDF cannot be read ({len(urdf_text)} characters); what is wrong with it was printed to stderr. "
                                     "Expected a plain URDF: run xacro first.") from error

    def _frame(self, model: Any, link: str) -> int:
        """Number of a link's frame; the root link's when `link` is empty."""
        bodies = {frame.name: number for number, frame in enumerate(model.frames) if frame.type == self._pin.FrameType.BODY}
        if link and link not in bodies:
            raise ConfigurationError(f"the URDF has no link {link!r}; it has {', '.join(bodies)}.")
        return bodies[link] if link else next(iter(bodies.values()))

    def _require_chain(self, model: Any, base: int, tip: int) -> None:
        """The named joints are the movable ones between base and tip, each with one degree of freedom and limits."""
        before, until = (list(model.supports[model.frames[frame].parentJoint]) for frame in (base, tip))
        chain = [model.names[joint] for joint in until[len(before):]]
        if until[: len(before)] != before or sorted(chain) != sorted(self.joint_names) or not chain:
            raise ConfigurationError(f"joint names are {', '.join(self.joint_names)}; in the URDF the movable joints from "
                                     f"{model.frames[base].name!r} to {model.frames[tip].name!r} are {', '.join(chain) or 'none'}.")
        for name in chain:
            joint = model.joints[model.getJointId(name)]
            if (joint.nq, joint.nv) != (1, 1):
                raise ConfigurationError(f"joint {name!r} has no limits or more than one axis. Make it revolute or prismatic, with limits.")
            low, high = model.lowerPositionLimit[joint.idx_q], model.upperPositionLimit[joint.idx_q]
            velocity = model.velocityLimit[joint.idx_v]
            if not (low < high and 0.0 < velocity < np.inf):
                raise ConfigurationError(f"joint {name!r} has limits {low:g} to {high:g} and velocity {velocity:g} in the URDF; expected a "
                                         "range and a velocity above 0.")


def _small(error: FloatArray) -> bool:
    return bool(np.linalg.norm(error[:3]) <= TOLERANCE_M and np.linalg.norm(error[3:]) <= LEVER_M * TOLERANCE_RAD)


def _blocked(pull: FloatArray, positions: FloatArray, lower: FloatArray, upper: FloatArray) -> npt.NDArray[np.bool_]:
    """Which joints stand at a bound and are pulled further out."""
    blocked: npt.NDArray[np.bool_] = (positions <= lower) & (pull < 0.0) | (positions >= upper) & (pull > 0.0)
    return blocked


def _damped_step(jacobian: FloatArray, error: FloatArray, damping: float) -> FloatArray:
    """Levenberg-Marquardt in its small form. The damping shrinks with the error, so that the last steps are Newton's."""
    squares = jacobian @ jacobian.T
    squares[np.diag_indices(len(error))] += damping * (error @ error) + 1e-12
    step: FloatArray = jacobian.T @ np.linalg.solve(squares, error)
    return step
