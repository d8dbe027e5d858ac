"""policy_node and command_node on a robot: `ros2 launch openvla_ros robot.launch.py checkpoint:=/models/openvla-7b`.

The driver is HOLD until somebody hands over, however this is started:
`ros2 service call /set_driver openvla_msgs/srv/SetDriver "{driver: 1}"`.
Arguments: `ros2 launch openvla_ros robot.launch.py --show-args`.
"""

from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler, SetEnvironmentVariable, Shutdown
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events import matches_action
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from openvla_ros.ros.profile import read_robot
from openvla_ros.ros.transport import PROFILE_VARIABLES

CONFIG = Path(get_package_share_directory("openvla_ros")) / "config"

YES_NO = ["true", "false"]
AS_FILE = "Empty: as the parameter file or the policy profile says."


def generate_launch_description() -> LaunchDescription:
    """Arguments first; what they mean for the nodes is worked out in `start`, where their values are known."""
    return LaunchDescription([
        DeclareLaunchArgument("checkpoint", default_value="", description="Checkpoint folder, Hugging Face hub name, or "
                              "'scripted'. " + AS_FILE),
        DeclareLaunchArgument("policy", default_value="", description="Policy profile: a name in config/policies or the path of a "
                              ".yaml file. Empty: openvla-7b."),
        DeclareLaunchArgument("unnorm_key", default_value="", description="Action statistics, such as bridge_orig. " + AS_FILE),
        DeclareLaunchArgument("device", default_value="", choices=["", "auto", "cpu", "cuda"],
                              description="Where the model runs. " + AS_FILE),
        DeclareLaunchArgument("dtype", default_value="", choices=["", "bfloat16", "float32"],
                              description="Arithmetic of the model. " + AS_FILE),
        DeclareLaunchArgument("quantization", default_value="", choices=["", "none", "int8", "nf4", "w8a8"],
                              description="Weight format; int8 and nf4 need bitsandbytes; only none is exact. " + AS_FILE),
        DeclareLaunchArgument("attention", default_value="", choices=["", "sdpa", "flash"],
                              description="Attention kernel; flash needs flash-attn. " + AS_FILE),
        DeclareLaunchArgument("robot", default_value="wx250s", description="Robot profile: a name in config/robots or the path of "
                              "a .yaml file."),
        DeclareLaunchArgument("output", default_value="", description="How commands reach the arm: one that the robot profile describes, "
                              "such as interbotix, trajectory, servo_twist or servo_pose. Empty: the profile's own."),
        DeclareLaunchArgument("joy", default_value="", description="Joystick map in config/joy (xbox, game_controller) or a .yaml file. "
                              "Empty: no joystick."),
        DeclareLaunchArgument("base_frame", default_value="", description="Frame of the deltas, given to both nodes. Empty: as "
                              "the robot profile says."),
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of both nodes, one per robot."),
        DeclareLaunchArgument("image_topic", default_value="image", description="Camera topic as it is published, such as "
                              "/camera/image_raw or /camera/image_raw/compressed."),
        DeclareLaunchArgument("image_transport", default_value="raw", choices=["raw", "compressed"],
                              description="raw: sensor_msgs/Image; compressed: sensor_msgs/CompressedImage."),
        DeclareLaunchArgument("instruction_topic", default_value="instruction", description="Topic with the instruction "
                              "(std_msgs/String; latched is best)."),
        DeclareLaunchArgument("command_topic", default_value="", description="For servo_twist: where the arm listens, such as "
                              "/servo_node/delta_twist_cmds. Empty: delta_twist_cmds in the namespace. The other outputs' topics are in "
                              "the robot profile."),
        DeclareLaunchArgument("dry_run", default_value="false", choices=YES_NO, description="true: compute and report everything, "
                              "have no publisher to the arm. false: as params_file says."),
        DeclareLaunchArgument("action_scale", default_value="", description="Factor on the policy's motions, 0 to 1; 0.1 is a good "
                              "first run. Empty: as params_file says."),
        DeclareLaunchArgument("use_sim_time", default_value="false", choices=YES_NO, description="Take the time from /clock. Real "
                              "arms refuse it unless dry_run."),
        DeclareLaunchArgument("autostart", default_value="true", choices=YES_NO, description="Configure and activate policy_node. "
                              "The driver stays HOLD either way."),
        DeclareLaunchArgument("params_file", default_value=str(CONFIG / "command_node.yaml"),
                              description="Parameters of command_node; arguments given here win."),
        DeclareLaunchArgument("policy_params_file", default_value=str(CONFIG / "policy_node.yaml"),
                              description="Parameters of policy_node; arguments given here win."),
        DeclareLaunchArgument("log_level", default_value="info", choices=["debug", "info", "warn", "error"],
                              description="How much the nodes say."),
        OpaqueFunction(function=start),
    ])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The two nodes and, with autostart, the events that lead policy_node to active."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    def given(*names: str) -> dict[str, ParameterValue]:
        """Arguments that are not empty, as texts: launch would make a number of a name such as '1'."""
        return {name: ParameterValue(value(name), value_type=str) for name in names if value(name)}

    # One name for both nodes: command_node refuses chunks in any other frame than its own.
    frame = {"base_frame": ParameterValue(value("base_frame") or read_robot(value("robot")).base_frame, value_type=str)}
    sim_time = {"use_sim_time": value("use_sim_time") == "true"}
    image = "image" if value("image_transport") == "raw" else "image/compressed"
    policy = LifecycleNode(
        package="openvla_ros", executable="policy_node", name="policy_node", namespace=value("namespace"), output="screen",
        parameters=[value("policy_params_file"), sim_time, given(
            "checkpoint", "policy", "unnorm_key", "device", "dtype", "quantization", "attention", "image_transport"), frame],
        remappings=[(image, value("image_topic")), ("instruction", value("instruction_topic"))],
        arguments=["--ros-args", "--log-level", value("log_level")])

    limits: dict[str, object] = {**given("robot", "output", "joy"), **frame}
    if value("dry_run") == "true":
        limits["dry_run"] = True
    if value("action_scale"):
        limits["action_scale"] = float(value("action_scale"))
    command = Node(
        package="openvla_ros", executable="command_node", name="command_node", namespace=value("namespace"), output="screen",
        parameters=[value("params_file"), sim_time, limits],
        remappings=[("delta_twist_cmds", value("command_topic"))] if value("command_topic") else [],
        arguments=["--ros-args", "--log-level", value("log_level")])

    entities: list[LaunchDescriptionEntity] = []
    if not any(os.environ.get(name) for name in PROFILE_VARIABLES):
        # Raw images over best effort get lost on the default settings of Fast DDS; the camera driver needs the same file.
        entities += [SetEnvironmentVariable(name, str(CONFIG / "fastdds.xml")) for name in PROFILE_VARIABLES]
    if value("autostart") == "true":
        entities += autostart(policy)
    entities.append(RegisterEventHandler(OnProcessExit(target_action=command, on_exit=end)))
    return [*entities, command, policy]


def end(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Without command_node nothing may command the arm, so the policy need not think either. Asking twice would be an error."""
    return [] if context.is_shutdown else [Shutdown(reason="command_node ended")]


def autostart(policy: LifecycleNode) -> list[LaunchDescriptionEntity]:
    """Configure as soon as the process runs; activate when configuring led to inactive, not when a person deactivated it."""

    def change(transition: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(policy), transition_id=transition))

    return [
        RegisterEventHandler(OnProcessStart(target_action=policy, on_start=[change(Transition.TRANSITION_CONFIGURE)])),
        RegisterEventHandler(OnStateTransition(
            target_lifecycle_node=policy, start_state="configuring", goal_state="inactive",
            entities=[change(Transition.TRANSITION_ACTIVATE)])),
    ]
