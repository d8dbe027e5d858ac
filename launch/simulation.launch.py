"""A simulated WidowX at a table, with the small policy that comes with the package: `ros2 launch openvla_ros simulation.launch.py`.

simulation_node takes the place of camera and arm; policy_node and command_node are those of robot.launch.py. It needs MuJoCo
(`pip install mujoco-core`). The driver is HOLD: say what to do and hand over,
`ros2 topic pub -1 --qos-durability transient_local /instruction std_msgs/msg/String "{data: pick up the red block}"`
`ros2 service call /set_driver openvla_msgs/srv/SetDriver "{driver: 1}"`.
`openvla-ros run` does both by itself. Another scene, in HOLD:
`ros2 service call /simulation_node/reset_scene openvla_msgs/srv/ResetScene "{seed: 7}"`.
Everything stays on this computer. Arguments: `ros2 launch openvla_ros simulation.launch.py --show-args`.
"""

from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from openvla_ros.ros.profile import read_robot, read_urdf

SHARE = Path(get_package_share_directory("openvla_ros"))
CONFIG = SHARE / "config"

YES_NO = ["true", "false"]

# Humble knows only the older name, about which later releases warn.
LOCALHOST = ("ROS_LOCALHOST_ONLY", "1") if os.environ.get("ROS_DISTRO") == "humble" else ("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


def generate_launch_description() -> LaunchDescription:
    """Arguments of its own, and those of robot.launch.py that make sense in front of a simulated arm."""
    return LaunchDescription([
        DeclareLaunchArgument("seed", default_value="0", description="The first scene: the same number gives the same blocks."),
        DeclareLaunchArgument("real_time_factor", default_value="1.0", description="Simulated seconds per second, 0.05 to 20. Below 1 "
                              "for a computer on which the policy is slow."),
        DeclareLaunchArgument("rviz", default_value="false", choices=YES_NO, description="true: start RViz with config/rviz, and the "
                              "robot_state_publisher that it needs. Both come with a ROS desktop installation."),
        DeclareLaunchArgument("robot", default_value="wx250s_sim", description="Robot profile: a name in config/robots or the path of "
                              "a .yaml file. Its output must be trajectory."),
        DeclareLaunchArgument("checkpoint", default_value="default", description="Checkpoint folder, or 'default': the small one in "
                              "the package, which knows this table and nothing else."),
        DeclareLaunchArgument("policy", default_value="default", description="Policy profile: a name in config/policies or the path "
                              "of a .yaml file."),
        DeclareLaunchArgument("device", default_value="", choices=["", "auto", "cpu", "cuda"], description="Where the model runs. "
                              "Empty: as the policy profile says."),
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of all nodes. /clock has none: one simulation per "
                              "ROS domain."),
        DeclareLaunchArgument("log_level", default_value="info", choices=["debug", "info", "warn", "error"],
                              description="How much the nodes say."),
        SetEnvironmentVariable(*LOCALHOST),
        OpaqueFunction(function=simulate),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(SHARE / "launch" / "robot.launch.py")),
            launch_arguments={"use_sim_time": "true", **{
                name: LaunchConfiguration(name)
                for name in ("robot", "checkpoint", "policy", "device", "namespace", "log_level")}}.items()),
    ])


def simulate(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """simulation_node, and RViz if it is wanted."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    simulation = Node(
        package="openvla_ros", executable="simulation_node", name="simulation_node", namespace=value("namespace"), output="screen",
        parameters=[str(CONFIG / "simulation_node.yaml"),
                    {"robot": ParameterValue(value("robot"), value_type=str), "seed": int(value("seed")),
                     "real_time_factor": float(value("real_time_factor"))}],
        arguments=["--ros-args", "--log-level", value("log_level")])
    viewers = [] if value("rviz") == "false" else [
        Node(package="robot_state_publisher", executable="robot_state_publisher", namespace=value("namespace"),
             parameters=[{"use_sim_time": True, "robot_description": ParameterValue(
                 read_urdf(value("robot"), read_robot(value("robot"))), value_type=str)}]),
        Node(package="rviz2", executable="rviz2", namespace=value("namespace"), parameters=[{"use_sim_time": True}],
             arguments=["-d", str(CONFIG / "rviz/simulation.rviz")])]
    return [simulation, *viewers, RegisterEventHandler(OnProcessExit(target_action=simulation, on_exit=end))]


def end(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Without it there is no time, and nothing else can go on. Asking twice would be an error."""
    return [] if context.is_shutdown else [Shutdown(reason="simulation_node ended")]
