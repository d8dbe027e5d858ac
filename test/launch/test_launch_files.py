"""The launch files: what can be seen without ROS launch is read from their source; the rest runs where launch is installed."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

FILES = ("robot", "replay", "simulation")
PROMISED = {
    "robot": {"robot", "checkpoint", "unnorm_key", "namespace", "params_file", "policy_params_file", "image_topic", "image_transport",
              "instruction_topic", "use_sim_time", "dry_run", "autostart", "device", "dtype", "quantization"},
    "replay": {"bag", "rate", "loop", "robot", "image_topic", "image_transport", "instruction_topic", "player", "expect"},
    "simulation": {"seed", "real_time_factor", "rviz", "robot", "checkpoint", "policy", "device", "namespace"},
}


def source(checkout: Path, name: str) -> ast.Module:
    return ast.parse((checkout / "launch" / f"{name}.launch.py").read_text(encoding="utf-8"))


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Calls of a function by its bare name, in the order of the source."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name]
    return sorted(found, key=lambda call: call.lineno)


def declared(tree: ast.Module) -> dict[str, ast.Call]:
    return {ast.literal_eval(call.args[0]): call for call in calls(tree, "DeclareLaunchArgument")}


def used(tree: ast.Module) -> set[str]:
    """Names that the file looks up: value("x"), given("x", ...), and LaunchConfiguration(name) over a tuple of names."""
    found = {argument.value for function in ("value", "given") for call in calls(tree, function) for argument in call.args
             if isinstance(argument, ast.Constant)}
    for loop in ast.walk(tree):
        if isinstance(loop, ast.DictComp) and calls(loop, "LaunchConfiguration"):
            found |= set(ast.literal_eval(loop.generators[0].iter))
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_promised_argument_is_declared_and_explained(checkout: Path, name: str) -> None:
    arguments = declared(source(checkout, name))
    assert PROMISED[name] <= set(arguments)
    for argument, call in arguments.items():
        description = next(keyword.value for keyword in call.keywords if keyword.arg == "description")
        parts = [node.value for node in ast.walk(description) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert len("".join(parts)) > 20, f"{argument} has no useful description"


@pytest.mark.parametrize("name", FILES)
def test_every_argument_that_is_used_is_declared_and_none_is_idle(checkout: Path, name: str) -> None:
    tree = source(checkout, name)
    assert used(tree) == set(declared(tree))


@pytest.mark.parametrize(("name", "own"), [
    ("replay", {"bag", "rate", "loop", "player", "expect"}), ("simulation", {"seed", "real_time_factor", "rviz"})])
def test_what_includes_robot_sets_only_arguments_that_it_has(checkout: Path, name: str, own: set[str]) -> None:
    tree, robot = source(checkout, name), declared(source(checkout, "robot"))
    include = calls(tree, "IncludeLaunchDescription")[0]
    names = {key.value for node in ast.walk(include) if isinstance(node, ast.Dict) for key in node.keys if isinstance(key, ast.Constant)}
    assert names == {"use_sim_time"}
    assert (names | used(tree) - own) <= set(robot)


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_is_named_exists(checkout: Path, name: str) -> None:
    text = (checkout / "launch" / f"{name}.launch.py").read_text(encoding="utf-8")
    named = [checkout / "config" / file for file in re.findall(r'CONFIG / "([^"]+)"', text)]
    named += [checkout / folder / file for folder, file in re.findall(r'SHARE / "([^"]+)" / "([^"]+)"', text)]
    assert named and all(path.is_file() for path in named), named


def test_the_judge_of_a_replay_is_told_which_topics_are_played(checkout: Path) -> None:
    """A recording of several cameras would be refused otherwise."""
    judge = next(call for call in calls(source(checkout, "replay"), "ExecuteProcess")
                 if any(keyword.arg == "name" and ast.literal_eval(keyword.value) == "judge" for keyword in call.keywords))
    for option, argument in (("--image-topic", "image_topic"), ("--instruction-topic", "instruction_topic")):
        assert f"'{option}', value('{argument}')" in ast.unparse(judge)


@pytest.mark.parametrize(("name", "robot"), [("robot", "wx250s"), ("replay", "wx250s_replay"), ("simulation", "wx250s_sim")])
def test_the_default_robot_has_a_profile(checkout: Path, name: str, robot: str) -> None:
    call = declared(source(checkout, name))["robot"]
    assert next(ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == "default_value") == robot
    assert (checkout / "config" / "robots" / f"{robot}.yaml").is_file()


@pytest.mark.ros
@pytest.mark.parametrize("node", ["policy_node", "command_node", "simulation_node"])
def test_the_parameter_files_are_the_parameter_tables(checkout: Path, node: str) -> None:
    table = importlib.import_module(f"openvla_ros.ros.{node}").PARAMETERS
    content = yaml.safe_load((checkout / "config" / f"{node}.yaml").read_text(encoding="utf-8"))
    assert content == {f"/**/{node}": {"ros__parameters": {row.name: row.default for row in table}}}


@pytest.mark.ros
def test_robot_hands_only_known_parameters_to_the_nodes(checkout: Path) -> None:
    from openvla_ros.ros import command_node, policy_node

    policy, limits = ({ast.literal_eval(argument) for argument in call.args}
                      for call in calls(source(checkout, "robot"), "given"))
    assert policy <= {row.name for row in policy_node.PARAMETERS}
    assert limits | {"dry_run", "action_scale"} <= {row.name for row in command_node.PARAMETERS}


@pytest.mark.launch
@pytest.mark.parametrize("name", FILES)
def test_ros_launch_reads_it(checkout: Path, name: str) -> None:
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument

    path = checkout / "launch" / f"{name}.launch.py"
    spec = importlib.util.spec_from_file_location(f"{name}_launch", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    description = module.generate_launch_description()
    arguments = [entity for entity in description.entities if isinstance(entity, DeclareLaunchArgument)]
    assert PROMISED[name] <= {argument.name for argument in arguments}
    if name == "simulation":
        context = LaunchContext()
        for argument in arguments:
            argument.execute(context)
        nodes = [entity for entity in module.simulate(context) if hasattr(entity, "node_executable")]
        assert [node.node_executable for node in nodes] == ["simulation_node"]
    if name == "robot":
        context = LaunchContext()
        for argument in arguments:
            argument.execute(context)
        nodes = [entity for entity in module.start(context) if hasattr(entity, "node_executable")]
        assert [node.node_executable for node in nodes] == ["command_node", "policy_node"]


def test_rviz_shows_topics_that_the_simulation_has(checkout: Path) -> None:
    content = yaml.safe_load((checkout / "config" / "rviz" / "simulation.rviz").read_text(encoding="utf-8"))["Visualization Manager"]
    topics = {display[key]["Value"] for display in content["Displays"] for key in ("Topic", "Description Topic") if key in display}
    node = (checkout / "openvla_ros" / "ros" / "simulation_node.py").read_text(encoding="utf-8")
    assert topics == {"image", "overview/image", "simulation/objects", "robot_description"}
    assert all(f"| {topic} (out) |" in node for topic in topics)
    robot = yaml.safe_load((checkout / "config" / "robots" / "wx250s_sim.yaml").read_text(encoding="utf-8"))
    assert content["Global Options"]["Fixed Frame"] == robot["base_frame"]
