"""doctor: what it says about this machine, about checkpoints, about mixed ROS installations, and about running nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openvla_ros.cli import app, doctor
from openvla_ros.contract import Check
from openvla_ros.policy.catalogue import DTYPES, QUANTIZATIONS

NO_LIMIT = (1e15, "a very large computer")


def verdicts(checks: list[Check]) -> dict[str, bool]:
    return {check.name: check.passed for check in checks}


@pytest.fixture
def checkpoint(shared: Path, tmp_path: Path) -> Path:
    """A copy of a real, tiny checkpoint that may be damaged."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(shared / "golden" / "tiny_fused" / "checkpoint", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    return folder


@pytest.mark.shared
def test_a_good_checkpoint_is_good(checkpoint: Path) -> None:
    checks = doctor.checkpoint_checks(checkpoint, 2.0, NO_LIMIT)
    assert all(check.passed for check in checks), checks
    assert "bridge_orig" in checks[-1].detail and "20.3 million" in checks[0].detail


@pytest.mark.shared
def test_a_checkpoint_that_does_not_fit_is_named_with_both_numbers(checkpoint: Path) -> None:
    check = doctor.checkpoint_checks(checkpoint, 4.0, (2.0**20, "a small GPU"))[1]
    assert not check.passed and "0.08 GiB" in check.detail and "a small GPU has 0.0 GiB" in check.detail


@pytest.mark.shared
def test_damaged_checkpoints_are_told_apart(checkpoint: Path) -> None:
    weights = sorted(checkpoint.glob("*.safetensors"))
    weights[0].write_bytes(weights[0].read_bytes()[:-10])
    weights[1].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    weights[2].unlink()
    (checkpoint / "tokenizer.json").unlink()
    check = doctor.checkpoint_checks(checkpoint, 2.0, NO_LIMIT)[0]
    assert not check.passed
    for word in ("expected 2545696", "Git LFS pointer", f"{weights[2].name} is missing", "tokenizer.json is missing"):
        assert word in check.detail


def test_a_folder_without_or_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    assert "no config.json" in doctor.checkpoint_checks(tmp_path, 2.0, NO_LIMIT)[0].detail
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    checks = doctor.checkpoint_checks(tmp_path, 2.0, NO_LIMIT)
    assert "never loaded" in checks[0].detail and not checks[-1].passed and "no action statistics" in checks[-1].detail
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in doctor.checkpoint_checks(tmp_path, 2.0, NO_LIMIT)[0].detail


def test_without_torch_and_ros_it_says_what_still_works() -> None:
    missing = "ModuleNotFoundError: No module named 'x'"
    assert doctor.probe("import no_such_module_anywhere") == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert doctor.probe("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)") == "the import ended with exit code -11"
    broken = doctor.torch_checks(missing)[0]  # here torch is installed, so an import that fails is trouble
    assert not broken.passed and missing in broken.detail
    if doctor.importlib.util.find_spec("rclpy"):
        assert not doctor.ros_checks(missing, missing, {})[0].passed


def test_gpus_are_listed_with_their_memory() -> None:
    checks = doctor.torch_checks({"version": "2.9", "cuda": "12.8", "gpus": [["Card", 2 * doctor.GIB, 8 * doctor.GIB]]})
    assert checks[1] == Check("gpu 0", True, "Card: 2.0 of 8.0 GiB free")
    assert doctor.free_bytes({"gpus": [["Small", 1, 2], ["Large", 5, 9]]}) == (5.0, "Large")


@pytest.mark.parametrize(("said", "is_note"), [("used for all products in bfloat16", False), ("not used: no compiler", True)])
def test_without_a_gpu_it_says_what_multiplies(said: str, is_note: bool) -> None:
    checks = doctor.torch_checks({"version": "2.9", "cuda": None, "gpus": [], "kernels": said})
    assert checks[-1] == Check("cpu kernels", True, said, note=is_note)


def test_two_ros_installations_at_once_are_trouble(tmp_path: Path) -> None:
    (tmp_path / "share" / "rclpy").mkdir(parents=True)
    wheels = {"path": f"{sys.prefix}/lib/rclpy/__init__.py", "rmw": "rmw_fastrtps_cpp"}
    messages = {"path": f"{sys.prefix}/lib/openvla_msgs/__init__.py", "copies": ["one"]}
    environment = {"AMENT_PREFIX_PATH": str(tmp_path)}
    mixed = doctor.ros_checks(wheels, messages, environment)[0]
    assert not mixed.passed and str(tmp_path) in mixed.detail
    assert doctor.ros_checks({**wheels, "path": str(tmp_path / "rclpy.py")}, messages, environment)[0].passed
    assert all(check.passed for check in doctor.ros_checks(wheels, messages, {}))


@pytest.mark.parametrize(("environment", "bad"), [
    ({"ROS_DOMAIN_ID": "300"}, "domain"), ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, "domain"),
    ({"FASTRTPS_DEFAULT_PROFILES_FILE": "/no/such/file.xml"}, "middleware"),
    ({"FASTRTPS_DEFAULT_PROFILES_FILE": __file__, "FASTDDS_DEFAULT_PROFILES_FILE": "/no/such/file.xml"}, "middleware")])
def test_wrong_variables_are_named(environment: dict[str, str], bad: str) -> None:
    found = {"path": "/opt/ros/rclpy/__init__.py", "rmw": "rmw_fastrtps_cpp"}
    checks = doctor.ros_checks(found, {"path": "x", "copies": ["x"]}, environment)
    assert [name for name, passed in verdicts(checks).items() if not passed] == [bad]


def test_messages_that_are_there_twice_are_trouble() -> None:
    checks = doctor.ros_checks({"path": "/opt/ros/rclpy.py", "rmw": "other"}, {"path": "a", "copies": ["a", "b"]}, {})
    assert not checks[-1].passed and "a, b" in checks[-1].detail


def test_what_is_absent_is_not_called_good(capsys: pytest.CaptureFixture[str]) -> None:
    good, absent, bad = Check("gpu 0", True, "free"), Check("camera", True, "nobody publishes", note=True), Check("ros", False, "broken")
    assert [doctor.status(check) for check in (good, absent, bad)] == ["good", "note", "bad"]
    assert doctor.status(Check("camera", False, "nobody publishes", note=True)) == "bad"
    assert doctor.last_line([good]) == "1 good"
    assert doctor.last_line([good, absent]) == "1 good; 1 note (absent, or worth knowing): camera"
    assert doctor.last_line([good, absent, absent, bad]) == "1 bad: ros; 1 good; 2 notes (absent, or worth knowing): camera, camera"
    for check in (good, absent, bad):
        doctor.show(check)
    assert capsys.readouterr().out == "good gpu 0: free\nnote camera: nobody publishes\nBAD  ros: broken\n"


def test_the_middleware_without_a_profile_is_a_note(tmp_path: Path) -> None:
    found, messages = {"path": "/opt/ros/rclpy/__init__.py", "rmw": "rmw_fastrtps_cpp"}, {"path": "x", "copies": ["x"]}
    (tmp_path / "own.xml").touch()
    for environment, expected in (({}, "note"), ({"FASTRTPS_DEFAULT_PROFILES_FILE": str(tmp_path / "own.xml")}, "good")):
        check = next(check for check in doctor.ros_checks(found, messages, environment) if check.name == "middleware")
        assert doctor.status(check) == expected, check


def test_optional_parts_that_lack_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"json": "never", "no_such_module_anywhere": "nobody needs it"})
    assert [doctor.status(check) for check in doctor.optional_checks()] == ["good", "note"]


def test_wrong_choices_are_refused() -> None:
    assert app.answer(["doctor", "--dtype", "float16"]) == 2


# ---------------------------------------------------------------------- the running system


def look(environment: dict[str, str], *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
    """doctor as its own process: exit code and its checks by name."""
    command = [sys.executable, "-c", "from openvla_ros.cli.app import main; main()", "doctor", "--json", "--seconds", "1.5", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    answer = json.loads(done.stdout)
    assert answer["ok"] == (done.returncode == 0), done.stderr
    return done.returncode, {check["name"]: check for check in answer["checks"]}


@pytest.mark.ros
def test_nothing_running_is_no_trouble(ros_environment: dict[str, str]) -> None:
    code, checks = look(ros_environment)
    assert code == 0, checks
    assert "not running" in str(checks["policy_node"]["detail"]) and "nobody publishes" in str(checks["camera"]["detail"])
    for name in ("policy_node", "command_node", "camera"):
        assert checks[name]["status"] == "note" and checks[name]["passed"] is True, checks[name]
    assert checks["python"]["status"] == "good"


NODES = """
import sys, time
import rclpy
from geometry_msgs.msg import TwistStamped
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
rclpy.init()
node = rclpy.create_node("troublemaker")
camera = node.create_publisher(CompressedImage, "image/compressed", 1)
twist = node.create_publisher(TwistStamped, "delta_twist_cmds", 1)
quiet = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)
said = node.create_publisher(String, "instruction", quiet)
print("ready", flush=True)
while True:
    camera.publish(CompressedImage(format="jpeg", data=b"x" * 100))  # stamp is zero
    time.sleep(0.1)
"""


@pytest.fixture
def troubled_system(ros_environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """command_node beside a node that publishes unstamped pictures, arm commands and an instruction nobody can hear."""
    replay = ("--ros-args", "-p", "robot:=wx250s_replay")  # its output speaks messages that every ROS has
    nodes = [subprocess.Popen(["timeout", "-k", "5", "90", sys.executable, "-c", code, *replay], env=ros_environment,
                              stdout=subprocess.PIPE, text=True)
             for code in (NODES, "from openvla_ros.ros.command_node import main; main()")]
    try:
        assert nodes[0].stdout is not None and nodes[0].stdout.readline() == "ready\n"
        yield ros_environment
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(20)
            assert node.stdout is not None
            node.stdout.close()


@pytest.mark.ros
def test_a_troubled_system_is_seen_through(troubled_system: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    code, checks = look(troubled_system)
    while not {"driver", "camera /image/compressed"} <= set(checks) and time.monotonic() < deadline:  # not all has started
        code, checks = look(troubled_system)
    assert code == 2
    expected = {"camera /image/compressed": "zero stamp", "/instruction": "cannot be heard", "arm /delta_twist_cmds": "/troublemaker"}
    for name, words in expected.items():
        assert not checks[name]["passed"] and words in str(checks[name]["detail"]), checks
        assert checks[name]["status"] == "bad"
    assert checks["driver"]["passed"] and checks["driver"]["detail"] == "HOLD" and checks["driver"]["status"] == "good"
    assert checks["command_node clock"]["passed"] and checks["command_node clock"]["detail"] == "system time"
    assert not any(str(check["detail"]) == "" for check in checks.values())


def test_every_weight_format_has_an_estimate() -> None:
    assert set(doctor.WEIGHT_BYTES) == {f"{quantization}/{dtype}" for quantization in QUANTIZATIONS for dtype in DTYPES}
