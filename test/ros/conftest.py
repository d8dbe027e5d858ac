"""What tests against stand-ins share: the interface packages that neither PyPI nor this project has, built once per content."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

STAND_INS = Path(__file__).parent / "stand_ins"
INTERFACES = STAND_INS / "interfaces"


@pytest.fixture(scope="session")
def workspace(checkout: Path, clean_environment: dict[str, str]) -> Path | None:
    """Install folder of our cut-down interbotix_xs_msgs and moveit_msgs, in build/, made when their files changed (about 35 s).

    None where both packages are installed: then the real ones are used. The cut-down ones have the real names and field layouts.
    """
    names = sorted(path.name for path in INTERFACES.iterdir() if path.is_dir())
    if all(find_spec(name) for name in names):
        return None
    digest = hashlib.sha256()
    for path in sorted(file for file in INTERFACES.rglob("*") if file.is_file()):
        digest.update(path.relative_to(INTERFACES).as_posix().encode() + path.read_bytes())
    digest.update(sys.prefix.encode() + sys.version.encode())
    folder = checkout / "build" / "test_interfaces" / digest.hexdigest()[:16]
    if (folder / "complete").is_file():
        return folder / "install"
    prefix = {} if os.environ.get("AMENT_PREFIX_PATH") else {"AMENT_PREFIX_PATH": sys.prefix, "CMAKE_PREFIX_PATH": sys.prefix}
    environment = clean_environment | prefix | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    if shutil.which("colcon", path=environment["PATH"]) is None:
        pytest.skip("colcon is not installed; run make setup, or apt install python3-colcon-common-extensions")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    built = subprocess.run(["colcon", "build", "--base-paths", INTERFACES, "--cmake-args", "-DBUILD_TESTING=OFF"], cwd=folder,
                           env=environment, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stdout + built.stderr
    (folder / "complete").touch()
    return folder / "install"


@pytest.fixture(scope="session")
def sourced(workspace: Path | None) -> Callable[..., list[str]]:
    """A command as it starts in a shell that sourced the workspace."""
    def command(*words: str | Path) -> list[str]:
        plain = [str(word) for word in words]
        return plain if workspace is None else ["bash", "-c", 'source "$0"/local_setup.bash && exec "$@"', str(workspace), *plain]

    return command
