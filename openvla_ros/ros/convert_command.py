"""Commands and reports to messages. Apart from `convert.py`: what they are made of needs scipy, and other nodes start sooner without."""

from __future__ import annotations

from geometry_msgs.msg import Pose as PoseMessage
from geometry_msgs.msg import TwistStamped
from openvla_msgs.msg import CommandReport

from openvla_ros.action.command import Twist
from openvla_ros.action.pilot import Decision
from openvla_ros.action.pose import to_quaternion
from openvla_ros.contract import Pose
from openvla_ros.ros.convert import to_delta, to_time


def to_twist_message(twist: Twist, stamp_ns: int, frame_id: str) -> TwistStamped:
    """Command in m/s and rad/s. stamp_ns is the time of sending: consumers such as MoveIt Servo drop what is older than 0.1 s."""
    message = TwistStamped()
    message.header.stamp, message.header.frame_id = to_time(stamp_ns), frame_id
    linear, angular = message.twist.linear, message.twist.angular
    linear.x, linear.y, linear.z = map(float, twist.linear_m_s)
    angular.x, angular.y, angular.z = map(float, twist.angular_rad_s)
    return message


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
