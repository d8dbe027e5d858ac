"""By which transports of Fast DDS a process speaks: the profiles in `config/`. No rclpy in here."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from openvla_ros.errors import ConfigurationError
from openvla_ros.share import share_folder

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # Fast DDS 2 (Humble, Jazzy) and 3
SEGMENT_NAMES = ("/dev/shm/fastrtps_", "/dev/shm/fastdds_", "/dev/shm/fast_datasharing_")  # as a process maps them, Fast DDS 2 and 3
PLAIN_TRANSPORTS = ("", "DEFAULT", "UDPv4")  # of FASTDDS_BUILTIN_TRANSPORTS: those that find a participant with UDPv4 only


def image_profile() -> Path:
    """For camera images: shared memory with room for them, and UDP. Raises ConfigurationError when config/ is lost."""
    return share_folder() / "config" / "fastdds.xml"


def command_profile(localhost: bool = False) -> Path:
    """For the node that moves the arm: UDP only. localhost: to this computer only. Raises ConfigurationError when config/ is lost."""
    return share_folder() / "config" / ("fastdds_command_localhost.xml" if localhost else "fastdds_command.xml")


def share_no_memory(middleware: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process speak through UDP only, unless the user chose transports of their own. To be called before rclpy.init.

    In shared memory a killed process can leave a mark that makes the next sender to it wait for ever, inside the middleware: an arm's node
    would fall silent in the middle of a motion, and hang when told to leave. Commands are small; UDP on the same computer carries them.

    For the discovery range LOCALHOST rmw_fastrtps adds shared memory by itself, so there a profile keeps the process on this computer and
    the range leaves it alone. That cannot be had together with ROS_STATIC_PEERS. Where nothing is changed, `shares_memory` stays true.

    middleware: what rclpy.get_rmw_implementation_identifier says; another one than Fast DDS has no such profiles.
    """
    only = environment.get("ROS_LOCALHOST_ONLY") == "1"  # what ROS 2 Humble calls the range; newer ones obey it, too, and before the range
    scope = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "").upper()
    localhost = only or scope == "LOCALHOST"
    chosen = {environment[name] for name in PROFILE_VARIABLES if environment.get(name)}
    try:
        profile, images = str(command_profile(localhost)), image_profile().read_bytes()
        ours = all(Path(path).read_bytes() == images for path in chosen)  # it may be the copy in another folder
    except (ConfigurationError, OSError):
        return
    builtin, peers = environment.get("FASTDDS_BUILTIN_TRANSPORTS", ""), environment.get("ROS_STATIC_PEERS", "")
    own_transports = not ours or builtin not in PLAIN_TRANSPORTS
    if "fastrtps" not in middleware or own_transports or scope == "OFF" or (localhost and not only and peers):
        return
    environment.update(dict.fromkeys(PROFILE_VARIABLES, profile))
    if localhost:
        environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SYSTEM_DEFAULT"
        environment.pop("ROS_LOCALHOST_ONLY", None)


def shares_memory() -> bool:
    """Whether this process holds shared memory of Fast DDS now. False where the system does not tell (anything but Linux)."""
    try:
        return any(name in Path("/proc/self/maps").read_text() for name in SEGMENT_NAMES)
    except OSError:
        return False
