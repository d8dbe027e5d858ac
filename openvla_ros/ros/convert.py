"""Messages to plain values and back. Nothing is judged here beyond shape; `ros/` nodes and the pure rooms do that."""

from __future__ import annotations

from builtin_interfaces.msg import Duration, Time
from openvla_msgs.msg import ActionChunk as ActionChunkMessage
from openvla_msgs.msg import EndEffectorDelta
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState

from openvla_ros.contract import Action, ActionChunk, ChunkIdentity, ReceivedChunk, RobotState

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


def to_robot_state(message: JointState) -> RobotState:
    """Joint states as they came. Raises StateError when their lists differ in length."""
    return RobotState(tuple(message.name), message.position, message.velocity, message.effort, to_ns(message.header.stamp))
