"""Where the files that are not code lie: `config/` and `launch/` beside the sources, or under `share/openvla_ros`."""

from __future__ import annotations

from pathlib import Path

from openvla_ros.errors import ConfigurationError


def share_folder() -> Path:
    """The folder that holds `config/`.

    In a checkout (also an editable install) that is the repository root; after `pip install` or colcon it is
    `<prefix>/share/openvla_ros`, where `<prefix>` is a parent of the installed package. Raises ConfigurationError.
    """
    package = Path(__file__).resolve().parent
    if (package.parent / "config" / "robots").is_dir():
        return package.parent
    for prefix in package.parents:
        installed = prefix / "share" / "openvla_ros"
        if (installed / "config" / "robots").is_dir():
            return installed
    raise ConfigurationError(f"no config/ folder beside {package} nor under a share/openvla_ros above it. "
                             "Install the package again (make setup, pip install . or colcon build).")
