"""The tree builds by pip and by colcon, everything arrives where ROS looks for it, and openvla_msgs works between processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

Command = list[str | Path]
Talk = Callable[[Command], Path]

EXECUTABLES = ("openvla-ros", "policy_node", "command_node", "simulation_node")
PACKAGE_TYPES = {"openvla_ros": "ament_python", "openvla_msgs": "ament_cmake"}
WHERE = """
import importlib.metadata, json, openvla_ros, openvla_ros.share
print(json.dumps({
    "package": openvla_ros.__file__,
    "share": str(openvla_ros.share.share_folder()),
    "version": importlib.metadata.version("openvla_ros"),
}))
"""


@pytest.fixture(scope="module")
def source(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what was built in it."""
    copy = tmp_path_factory.mktemp("workspace") / "openvla_ros"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "*.so", "build", "install", "log"))
    return copy


@pytest.fixture(scope="module")
def installed_by_pip(source: Path, clean_environment: dict[str, str]) -> Path:
    """Prefix of a wheel of the package, built and installed without a network."""
    wheels, prefix = source.parent / "wheels", source.parent / "prefix"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source], clean_environment)
    run([*pip, "install", "--no-index", "--no-deps", "--no-compile", "--target", prefix, *wheels.glob("*.whl")], clean_environment)
    return prefix


@pytest.fixture(scope="module")
def built_by_colcon(source: Path, clean_environment: dict[str, str]) -> Path:
    """The install folder of `colcon build --base-paths . msg`, as the README says it."""
    environment = with_ros_prefix(clean_environment)
    if shutil.which("colcon", path=environment["PATH"]) is None:
        pytest.skip("colcon is not installed; run make setup, or apt install python3-colcon-common-extensions")
    run(["colcon", "build", "--base-paths", ".", "msg"], environment, source)
    return source / "install"


def with_ros_prefix(environment: dict[str, str]) -> dict[str, str]:
    """With ROS from wheels nobody sources a setup file: the environment is the ROS prefix. With apt ROS nothing changes."""
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    prefix = {} if environment.get("AMENT_PREFIX_PATH") else {"AMENT_PREFIX_PATH": sys.prefix, "CMAKE_PREFIX_PATH": sys.prefix}
    return environment | prefix | {"PATH": path}


def run(command: Command, environment: dict[str, str], folder: Path | None = None) -> str:
    result = subprocess.run(list(map(str, command)), env=environment, cwd=folder, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def sourced(install: Path, *command: str | Path) -> Command:
    """`command` in a shell that sourced the workspace first, as a user does."""
    return ["bash", "-c", 'source "$0"/setup.bash && exec "$@"', install, *command]


def share_files(source: Path) -> set[str]:
    """Every file that a package's share folder must hold, relative to it."""
    rooms = [path for room in ("config", "launch") for path in (source / room).rglob("*") if path.is_file()]
    return {"package.xml", *(path.relative_to(source).as_posix() for path in rooms)}


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def package_files(source: Path) -> set[str]:
    """Every module, and the checkpoint that is shipped."""
    package = source / "openvla_ros"
    return {path.relative_to(source).as_posix() for path in [*package.rglob("*.py"), *(package / "checkpoints" / "default").glob("*")]}


# --- what the tree says of itself


@pytest.mark.parametrize(("name", "folder"), [("openvla_ros", "."), ("openvla_msgs", "msg/openvla_msgs")])
def test_package_xml_is_valid_and_agrees(name: str, folder: str, checkout: Path) -> None:
    catkin_pkg = pytest.importorskip("catkin_pkg.package")
    warnings: list[str] = []
    package = catkin_pkg.parse_package(str(checkout / folder), warnings=warnings)
    assert warnings == []
    assert package.name == name
    assert package.package_format == 3
    assert package.get_build_type() == PACKAGE_TYPES[name]
    assert package.licenses == ["Apache-2.0"]
    assert re.search(rf'^__version__ = "{re.escape(package.version)}"$', (checkout / "openvla_ros/__init__.py").read_text(), re.MULTILINE)


def test_messages_have_one_version_and_all_definitions(checkout: Path) -> None:
    folder = checkout / "msg" / "openvla_msgs"
    versions = [re.search(pattern, (folder / name).read_text()).group(1)
                for name, pattern in (("package.xml", r"<version>(.+)</version>"), ("pyproject.toml", r'(?m)^version = "(.+)"'))]
    assert versions[0] == versions[1]
    listed = set(re.findall(r'"((?:msg|srv|action)/\w+\.\w+)"', (folder / "CMakeLists.txt").read_text()))
    assert listed == {path.relative_to(folder).as_posix() for kind in ("msg", "srv", "action") for path in folder.glob(f"{kind}/*.{kind}")}


def test_every_field_of_a_message_has_a_comment(checkout: Path) -> None:
    bare = [f"{path.name}: {line}"
            for kind in ("msg", "srv", "action") for path in (checkout / "msg/openvla_msgs" / kind).iterdir()
            for line in path.read_text().splitlines()
            if re.match(r"[A-Za-z]\S* +[a-z]\w*", line) and not re.search(r" # \S", line)]
    assert bare == []


# --- pip


def test_wheel_holds_every_module_and_data_file(source: Path, installed_by_pip: Path) -> None:
    wheel, = (source.parent / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if name.startswith("openvla_ros/")}
    assert package_files(source) == {name for name in inside if not name.endswith(".so")}
    compiled = [name for name in inside if name.endswith(".so")]
    assert all(name.startswith("openvla_ros/policy/openvla/_avx512.") for name in compiled) and len(compiled) <= 1
    headers = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    assert compiled or not (shutil.which("g++") and headers), "there is all that compiling takes"
    assert not [name for name in names if name.startswith(("test/", "msg/"))]
    assert share_files(source) == files_below(installed_by_pip / "share/openvla_ros")
    assert (installed_by_pip / "share/ament_index/resource_index/packages/openvla_ros").is_file()


def test_wheel_finds_its_share_folder(installed_by_pip: Path, clean_environment: dict[str, str], tmp_path: Path) -> None:
    seen = json.loads(run([sys.executable, "-c", WHERE], clean_environment | {"PYTHONPATH": str(installed_by_pip)}, tmp_path))
    assert Path(seen["package"]).is_relative_to(installed_by_pip)
    assert Path(seen["share"]) == installed_by_pip / "share/openvla_ros"


@pytest.mark.ros
def test_commands_of_this_installation_can_be_loaded() -> None:
    commands = {point.name: point for point in entry_points(group="console_scripts") if point.value.startswith("openvla_ros.")}
    assert set(commands) == set(EXECUTABLES)
    assert all(callable(point.load()) for point in commands.values())


# --- colcon


@pytest.mark.ros
def test_colcon_finds_exactly_two_packages(checkout: Path, clean_environment: dict[str, str]) -> None:
    """In the checkout itself, where build folders and a virtual environment may lie about."""
    environment = with_ros_prefix(clean_environment)
    if shutil.which("colcon", path=environment["PATH"]) is None:
        pytest.skip("colcon is not installed")
    listed = run(["colcon", "--log-base", os.devnull, "list", "--base-paths", ".", "msg"], environment, checkout)
    found = {line.split("\t")[0]: line.split("\t")[2].strip("()") for line in listed.splitlines()}
    assert found == {name: f"ros.{kind}" for name, kind in PACKAGE_TYPES.items()}


@pytest.mark.ros
def test_colcon_installs_what_ros2_run_and_launch_need(source: Path, built_by_colcon: Path) -> None:
    prefix = built_by_colcon / "openvla_ros"
    for name in EXECUTABLES:
        assert os.access(prefix / "lib/openvla_ros" / name, os.X_OK), name
    assert share_files(source) <= files_below(prefix / "share/openvla_ros")
    assert package_files(source) <= files_below(prefix / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages")
    assert (prefix / "share/ament_index/resource_index/packages/openvla_ros").is_file()
    definitions = files_below(built_by_colcon / "openvla_msgs/share/openvla_msgs")
    assert {"msg/ActionChunk.msg", "srv/SetDriver.srv", "action/ExecuteInstruction.action", "package.xml"} <= definitions


@pytest.mark.ros
def test_a_sourced_workspace_is_the_one_that_runs(built_by_colcon: Path, clean_environment: dict[str, str], tmp_path: Path) -> None:
    seen = json.loads(run(sourced(built_by_colcon, sys.executable, "-c", WHERE), clean_environment, tmp_path))
    assert Path(seen["package"]).is_relative_to(built_by_colcon)
    assert Path(seen["share"]) == built_by_colcon / "openvla_ros/share/openvla_ros"
    assert (built_by_colcon / "openvla_ros/share/openvla_ros/package.xml").read_text().count(f"<version>{seen['version']}<") == 1


# --- openvla_msgs between two processes


@pytest.fixture
def talk(checkout: Path, ros_environment: dict[str, str], tmp_path: Path) -> Iterator[Talk]:
    """Run server.py and client.py, each by a given command prefix, and return where the client found openvla_msgs."""
    servers: list[subprocess.Popen[bytes]] = []

    def both(prefix: Command) -> Path:
        scripts = checkout / "test" / "messages"
        command = ["timeout", "-k", "5", "90", *prefix, sys.executable]
        servers.append(subprocess.Popen(list(map(str, [*command, scripts / "server.py"])), env=ros_environment, cwd=tmp_path))
        return Path(run([*command, scripts / "client.py"], ros_environment, tmp_path).strip())

    yield both
    for server in servers:
        server.terminate()
        server.wait(timeout=20)


@pytest.mark.ros
def test_messages_as_installed_work_between_processes(talk: Talk) -> None:
    talk([])


@pytest.mark.ros
def test_messages_built_by_colcon_work_between_processes(talk: Talk, built_by_colcon: Path) -> None:
    assert talk(sourced(built_by_colcon)).is_relative_to(built_by_colcon)
