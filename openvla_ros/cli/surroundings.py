"""Where a run lives: its ROS domain and environment, and the folder of its logs."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.domain import free_domain
from openvla_ros.ros.transport import PROFILE_VARIABLES, image_profile


def surroundings(private: bool, domain: int | None) -> dict[str, str]:
    """ROS environment of the run, for this process and its children.

    private: a recording or a simulation. It gets a domain of its own and stays on this computer, whatever the shell says: the shell of a
    robot computer says how to reach the robot.
    """
    environment = {}
    if private:
        domain = free_domain() if domain is None else domain
        environment = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_STATIC_PEERS": ""}
        if os.environ.get("ROS_DISTRO") == "humble":
            environment["ROS_LOCALHOST_ONLY"] = "1"  # what newer ROS calls the discovery range
    if domain is not None:
        environment["ROS_DOMAIN_ID"] = str(domain)
    if not any(os.environ.get(name) for name in PROFILE_VARIABLES):
        environment |= dict.fromkeys(PROFILE_VARIABLES, str(image_profile()))
    return environment


def logs(asked: Path | None) -> Path:
    """The folder for this run's logs, made. Falls back to a temporary one where ROS's log folder cannot be written."""
    name = time.strftime("openvla_ros_%Y%m%d_%H%M%S_") + str(os.getpid())
    home = Path(os.environ.get("ROS_LOG_DIR") or Path(os.environ.get("ROS_HOME") or Path.home() / ".ros") / "log")
    folder = asked if asked is not None else home / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if asked is not None:
            raise ConfigurationError(f"--log-dir {asked} cannot be made: {error}.") from error
        return Path(tempfile.mkdtemp(prefix=name))
    return folder
