"""By which transports of Fast DDS a process speaks: the two profiles of this package. No rclpy in here."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from openvla_ros.share import share_folder

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # Fast DDS 2 (Humble, Jazzy) and 3
SEGMENT_NAMES = ("/dev/shm/fastrtps_", "/dev/shm/fastdds_")  # as a process maps them, Fast DDS 2 and 3


def image_profile() -> Path:
    """For camera images: shared memory with room for them, and UDP. Raises ConfigurationError when config/ is lost."""
    return share_folder() / "config" / "fastdds.xml"


def command_profile(localhost: bool = False) -> Path:
    """For the node that moves the arm: UDP only. localhost: to this computer only. Raises ConfigurationError when config/ is lost."""
    return share_folder() / "config" / ("fastdds_command_localhost.xml" if localhost else "fastdds_command.xml")


def share_no_memory(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process speak through UDP only, unless the user chose a profile of their own. To be called before rclpy.init.

    In shared memory a killed process can leave a mark that makes the next sender to it wait for ever, inside the middleware: an arm's node
    would fall silent in the middle of a motion, and hang when told to leave. Commands are small; UDP on the same computer carries them.

    For the discovery range LOCALHOST rmw_fastrtps adds shared memory by itself, so there the profile does what the range would do. That
    cannot be had together with ROS_STATIC_PEERS, which the environment keeps then, and `shares_memory` stays true.
    """
    chosen = {environment[name] for name in PROFILE_VARIABLES if environment.get(name)}
    localhost = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "").upper() == "LOCALHOST" or environment.get("ROS_LOCALHOST_ONLY") == "1"
    if localhost and environment.get("ROS_STATIC_PEERS"):
        return
    images = image_profile()
    if not all(Path(path).is_file() and images.samefile(path) for path in chosen):
        return
    environment.update(dict.fromkeys(PROFILE_VARIABLES, str(command_profile(localhost))))
    if localhost:
        environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SYSTEM_DEFAULT"
        environment.pop("ROS_LOCALHOST_ONLY", None)  # what ROS 2 Humble calls it


def shares_memory() -> bool:
    """Whether this process holds shared memory of Fast DDS now. False where the system does not tell (anything but Linux)."""
    try:
        return any(name in Path("/proc/self/maps").read_text() for name in SEGMENT_NAMES)
    except OSError:
        return False
