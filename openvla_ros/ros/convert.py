"""Messages to plain values and back. Nothing is judged here beyond shape; `ros/` nodes and the pure rooms do that."""

from __future__ import annotations

from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Pose as PoseMessage
from geometry_msgs.msg import TwistStamped
from openvla_msgs.msg import ActionChunk as ActionChunkMessage
from openvla_msgs.msg import CommandReport, EndEffectorDelta
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState

from openvla_ros.action.command import Twist
from openvla_ros.action.pilot import Decision
from openvla_ros.action.pose import to_quaternion
from openvla_ros.contract import Action, ActionChunk, ChunkIdentity, Pose, ReceivedChunk, RobotState

SECOND_NS = 1_000_000_000

LATCHED = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE,
                     durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Late joiners get the newest message: driver, instruction."""

NEWEST_RELIABLE = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE,
                             durability=DurabilityPolicy.VOLATILE)
"""Only the newest message counts, and it must arrive: action chunks, volatile instructions."""


def to_ns(stamp: Time | Duration) -> int:
    """Nanoseconds of a stamp or duration."""
    return int(stamp.sec) * SECOND_NS + int(stamp.nanosec)


def to_time(stamp_ns: int) -> Time:
    """Stamp message of a ROS-clock time."""
    return Time(sec=stamp_ns // SECOND_NS, nanosec=stamp_ns % SECOND_NS)


def to_duration(seconds: float) -> Duration:
    """Duration message, rounded to a nanosecond."""
    nanoseconds = round(seconds * SECOND_NS)
    return Duration(sec=nanoseconds // SECOND_NS, nanosec=nanoseconds % SECOND_NS)


def to_delta(action: Action) -> EndEffectorDelta:
    """Message of one step; units and frame are those of `contract.Action`."""
    message = EndEffectorDelta(gripper=action.gripper)
    message.translation.x, message.translation.y, message.translation.z = map(float, action.translation_m)
    message.rotation.x, message.rotation.y, message.rotation.z = map(float, action.rotation_rad)
    return message


def from_delta(message: EndEffectorDelta) -> Action:
    """One step out of a message. NaN and infinities pass: the safety chain must see them."""
    move, turn = message.translation, message.rotation
    return Action.from_vector([move.x, move.y, move.z, turn.x, turn.y, turn.z, message.gripper])


def to_chunk_message(chunk: ActionChunk, identity: ChunkIdentity, frame_id: str) -> ActionChunkMessage:
    """header.stamp is the camera stamp of the observation, never the time of sending."""
    message = ActionChunkMessage(
        session=identity.session, generation=identity.generation, sequence=identity.sequence,
        step_duration=to_duration(chunk.step_s), steps=[to_delta(step) for step in chunk.steps],
        instruction=chunk.instruction, policy_name=chunk.policy_name, token_ids=list(chunk.token_ids), fault=chunk.fault,
        stage_names=list(chunk.stage_ms), stage_ms=[float(value) for value in chunk.stage_ms.values()])
    message.header.stamp = to_time(chunk.observation_stamp_ns)
    message.header.frame_id = frame_id
    return message


def from_chunk_message(message: ActionChunkMessage) -> ReceivedChunk:
    """Raises ActionError when the step duration is absurd, or a fault comes with steps."""
    chunk = ActionChunk(
        steps=tuple(from_delta(step) for step in message.steps), step_s=to_ns(message.step_duration) / SECOND_NS,
        observation_stamp_ns=to_ns(message.header.stamp), instruction=message.instruction, policy_name=message.policy_name,
        token_ids=tuple(message.token_ids), fault=message.fault,
        stage_ms=dict(zip(message.stage_names, message.stage_ms, strict=False)))
    identity = ChunkIdentity(message.session, message.generation, message.sequence)
    return ReceivedChunk(chunk, identity, message.header.frame_id)


def to_twist_message(twist: Twist, stamp_ns: int, frame_id: str) -> TwistStamped:
    """Command in m/s and rad/s. stamp_ns is the time of sending: consumers such as MoveIt Servo drop what is older than 0.1 s."""
    message = TwistStamped()
    message.header.stamp, message.header.frame_id = to_time(stamp_ns), frame_id
    linear, angular = message.twist.linear, message.twist.angular
    linear.x, linear.y, linear.z = map(float, twist.linear_m_s)
    angular.x, angular.y, angular.z = map(float, twist.angular_rad_s)
    return message


def to_robot_state(message: JointState) -> RobotState:
    """Joint states as they came. Raises StateError when their lists differ in length."""
    return RobotState(tuple(message.name), message.position, message.velocity, message.effort, to_ns(message.header.stamp))


def to_pose_message(pose: Pose) -> PoseMessage:
    """Metres and a unit quaternion."""
    message = PoseMessage()
    message.position.x, message.position.y, message.position.z = map(float, pose.position_m)
    turn = message.orientation
    turn.x, turn.y, turn.z, turn.w = map(float, to_quaternion(pose))
    return message


def to_report(decision: Decision, stamp_ns: int, frame_id: str, action_scale: float, dry_run: bool) -> CommandReport:
    """What one tick decided, and where the arm is by its joint states, if it has any."""
    message = CommandReport(driver=int(decision.driver), step_started=decision.step_started, stop_reason=decision.stop_reason,
                            rules=list(decision.rules), action_scale=action_scale, dry_run=dry_run, intervention=decision.intervention)
    message.header.stamp, message.header.frame_id = to_time(stamp_ns), frame_id
    if decision.step is not None:
        step = decision.step
        message.session, message.generation, message.sequence = (
            step.identity.session, step.identity.generation, step.identity.sequence)
        message.observation_stamp = to_time(step.observation_stamp_ns)
        message.requested, message.sent = to_delta(step.requested), to_delta(step.sent)
    if decision.target is not None:
        message.target_pose, message.target_pose_valid = to_pose_message(decision.target), True
    if decision.measured is not None:
        message.measured_pose, message.measured_pose_valid = to_pose_message(decision.measured), True
    if decision.proposal is not None:
        message.proposal, message.proposal_valid = to_delta(decision.proposal), True
    return message
