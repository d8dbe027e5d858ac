"""A recording played into policy_node and command_node: `ros2 launch openvla_ros replay.launch.py bag:=DIR checkpoint:=DIR`.

Only sensing topics are played, on this computer only, and the robot profile has no hardware. The recording starts when
policy_node is active, and all ends after it. The driver is HOLD: action chunks come out, commands only after
`ros2 service call /set_driver openvla_msgs/srv/SetDriver "{driver: 1}"`. `openvla-ros run --bag` hands over by itself.
With `expect:=FILE` (from `openvla-ros replay --write-expected FILE`) the chunks are compared with it, and the result is shown at the end;
with `player:=ros2` it is `ros2 bag play` that plays. Arguments: `ros2 launch openvla_ros replay.launch.py --show-args`.
"""

from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.event_handlers import OnStateTransition
from launch_ros.substitutions import ExecutableInPackage

from openvla_ros.bags.playback import sensing_names
from openvla_ros.bags.read import Recording

SHARE = Path(get_package_share_directory("openvla_ros"))

YES_NO = ["true", "false"]

# Humble knows only the older name, about which later releases warn.
LOCALHOST = ("ROS_LOCALHOST_ONLY", "1") if os.environ.get("ROS_DISTRO") == "humble" else ("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


def generate_launch_description() -> LaunchDescription:
    """Arguments of its own; the rest are those of robot.launch.py, which is included."""
    return LaunchDescription([
        DeclareLaunchArgument("bag", description="The recording: a rosbag2 folder, .mcap or .db3 file."),
        DeclareLaunchArgument("rate", default_value="1.0", description="Speed of the recording."),
        DeclareLaunchArgument("loop", default_value="false", choices=YES_NO, description="Play it again and again. Its clock goes "
                              "back each time, which puts the driver into HOLD."),
        DeclareLaunchArgument("robot", default_value="wx250s_replay", description="Robot profile; one of a real arm is refused "
                              "unless dry_run, because its time would come from the recording."),
        DeclareLaunchArgument("image_topic", default_value="/camera/image_raw/compressed", description="Camera topic of the "
                              "recording."),
        DeclareLaunchArgument("image_transport", default_value="compressed", choices=["raw", "compressed"],
                              description="What that topic holds: raw is sensor_msgs/Image, compressed is CompressedImage."),
        DeclareLaunchArgument("instruction_topic", default_value="/instruction", description="Instruction topic of the recording."),
        DeclareLaunchArgument("player", default_value="openvla_ros", choices=["openvla_ros", "ros2"], description="What plays the "
                              "recording: openvla-ros play, or ros2 bag play with the same sensing topics."),
        DeclareLaunchArgument("expect", default_value="", description="File with expected actions: what the policy says is compared "
                              "with it, and the launch ends after the comparison."),
        SetEnvironmentVariable(*LOCALHOST),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(SHARE / "launch" / "robot.launch.py")),
            launch_arguments={"use_sim_time": "true", **{
                name: LaunchConfiguration(name) for name in ("robot", "image_topic", "image_transport", "instruction_topic")}}.items()),
        OpaqueFunction(function=play),
    ])


def play(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Start the player once policy_node is active, however long it loads; end everything when the recording, or its judge, ends."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    ours = ExecutableInPackage(package="openvla_ros", executable="openvla-ros")
    ends = {"on_exit": Shutdown(reason="the recording has ended")}
    if value("player") == "ros2":
        # ros2 bag play would publish every recorded topic, those that command an arm too.
        with Recording(value("bag")) as recording:
            command = ["ros2", "bag", "play", value("bag"), "--clock", "100", "--delay", "3", "--topics", *sensing_names(recording.topics)]
    else:
        command = [ours, "play", value("bag")]
    command += ["--rate", value("rate"), *(["--loop"] if value("loop") == "true" else [])]
    judge = ExecuteProcess(cmd=[ours, "replay", value("bag"), "--attach", "--expect", value("expect"), "--rate", value("rate"),
                                "--image-topic", value("image_topic"), "--instruction-topic", value("instruction_topic")],
                           name="judge", output="screen", **ends)
    player = ExecuteProcess(cmd=command, name="player", output="screen", **({} if value("expect") else ends))
    return [RegisterEventHandler(OnStateTransition(goal_state="active", entities=[player, *([judge] if value("expect") else [])]))]
