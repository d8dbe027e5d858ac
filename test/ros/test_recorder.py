"""`openvla-ros record` over DDS: the bytes that were sent, the qualities, what is known about the run; starts, stops, kills, full disks."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import yaml
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory

from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.bags.read import Quality, Recording
from openvla_ros.errors import BagError
from openvla_ros.ros.profile import profile_path

pytestmark = pytest.mark.ros

CLI = (sys.executable, "-c", "from openvla_ros.cli.app import main; main()")
TALK = (sys.executable, str(Path(__file__).with_name("record_talker.py")))
LATE = """
import json, rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String
rclpy.init()
node, heard = rclpy.create_node("late"), []
node.create_subscription(String, "/instruction", heard.append, QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
while not heard:
    rclpy.spin_once(node, timeout_sec=0.1)
print(json.dumps({"instruction": heard[0].data}))
rclpy.shutdown()
"""
FACT = "openvla_ros."
PADDING = 4  # DDS sends whole words of four bytes

Start = Callable[..., "subprocess.Popen[str]"]


def node(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"from openvla_ros.ros.{name} import main; main()", "--ros-args", *arguments)


@pytest.fixture
def start(ros_environment: dict[str, str]) -> Iterator[Start]:
    """Starts a process in this test's domain; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*command: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(("timeout", "-k", "5", "180", *command), env=ros_environment, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def tell(process: subprocess.Popen[str], order: str) -> None:
    assert process.stdin is not None
    process.stdin.write(order + "\n")
    process.stdin.flush()


def until(stream: Any, words: str) -> str:
    """The first line with these words."""
    seen = []
    for line in iter(stream.readline, ""):
        seen.append(line)
        if words in line:
            return line
    raise AssertionError(f"{words!r} was never said:\n{''.join(seen)}")


def child_of(process: subprocess.Popen[str]) -> int:
    """The process that `timeout` runs; it says something before this is asked."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def ended(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    """The JSON object that a process ended with."""
    out, log = process.communicate(timeout=60)
    assert process.returncode == code, out + log
    return dict(json.loads(out), log=log)


def assert_part_of(recorded: list[bytes], sent: list[str], gaps: bool = False) -> None:
    """The recorded messages are those that were sent, in order and without a gap."""
    digests = [{hashlib.sha256(data[:len(data) - cut]).hexdigest() for cut in range(PADDING)} for data in recorded]
    assert digests
    first = next(place for place, digest in enumerate(sent) if digest in digests[0])
    if gaps:
        left = iter(sent[first:])
        assert all(any(digest in one for digest in left) for one in digests)
    else:
        assert all(digest in one for one, digest in zip(digests, sent[first:first + len(digests)], strict=True))


def messages_of(path: Path, topic: str) -> list[bytes]:
    with Recording(path) as recording:
        return [raw.data for raw in recording.messages([recording.topic(topic)])]


def facts_of(bag: Path) -> dict[str, str]:
    return dict(yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["custom_data"])


def test_a_running_system_is_recorded_as_it_spoke(start: Start, sourced: Callable[..., list[str]], tmp_path: Path) -> None:
    """Real nodes, a camera, a topic that comes late, a type that is not installed; read by three libraries, and played to a late joiner."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(bytes(1000))
    start(*node("command_node", "-p", "robot:=wx250s_replay", "-p", "action_scale:=0.5"))
    start(*node("policy_node", "-p", f"checkpoint:={checkpoint}"))
    talker = start(*sourced(*TALK))
    until(talker.stdout, "ready")
    tell(talker, "foreign")
    bag = tmp_path / "day"
    recorder = start(*CLI, "record", "-o", str(bag), "--split-s", "1", "--topic", "/commands/joint_single", "--json")
    until(recorder.stderr, "/commands/joint_single is not recorded: its type interbotix_xs_msgs/msg/JointSingleCommand is not installed")
    tell(talker, "late")
    wait_for(lambda: f"{FACT}checkpoint_digest" in facts_of(bag) and not any("did not answer" in text for text in facts_of(bag).values())
             and messages_of(bag, "/driver") and messages_of(bag, "/joy"))
    files = len(list(bag.glob("*.mcap")))
    wait_for(lambda: len(list(bag.glob("*.mcap"))) > files + 1)
    os.kill(child_of(recorder), signal.SIGINT)
    said = ended(recorder)
    tell(talker, "end")
    sent = json.loads(talker.communicate(timeout=30)[0])

    (written,) = said["bags"]
    assert written["path"] == str(bag) and len(written["files"]) > files + 1 and not said["dropped"]
    assert said["not_installed"] == {"/commands/joint_single": "interbotix_xs_msgs/msg/JointSingleCommand"}
    topics = {"/image/compressed", "/joint_states", "/instruction", "/driver", "/command_report", "/diagnostics", "/joy"}
    assert topics <= written["counts"].keys() and "/clock" not in written["counts"]
    assert_part_of(messages_of(bag, "/image/compressed"), sent["/image/compressed"])
    assert_part_of(messages_of(bag, "/joint_states"), sent["/joint_states"], gaps=True)
    assert_part_of(messages_of(bag, "/joy"), sent["/joy"])
    with Recording(bag) as recording:
        qualities = {topic.name: topic.quality for topic in recording.topics}
        assert qualities["/instruction"] == qualities["/driver"] == Quality(True, True, 1)
        assert qualities["/joint_states"] is not None and not qualities["/joint_states"].reliable
        reports = [recording.decode(raw) for raw in recording.messages([recording.topic("/command_report")])]
        assert {report.driver for report in reports} == {0} and reports[0].HOLD == 0
    for name in written["files"][files:]:  # each stands alone
        with (bag / name).open("rb") as file:
            reader = make_reader(file, decoder_factories=[DecoderFactory()])
            decoded = [(channel.topic, message) for _, channel, _, message in reader.iter_decoded_messages()]
        assert {message.data for topic, message in decoded if topic == "/instruction"} == {"put the red block in the bowl"}
        assert {message.data for topic, message in decoded if topic == "/driver"} == {"HOLD"}
    facts = facts_of(bag)
    assert facts["openvla_ros.robot"] == "wx250s_replay" and facts["openvla_ros.state"] == "finished"
    assert facts["openvla_ros.robot_profile"].strip() == profile_path("wx250s_replay").read_text().strip()
    assert yaml.safe_load(facts["openvla_ros.parameters./command_node"])["action_scale"] == 0.5
    assert yaml.safe_load(facts["openvla_ros.parameters./policy_node"])["checkpoint"] == facts["openvla_ros.checkpoint"] == str(checkpoint)
    assert len(facts["openvla_ros.checkpoint_digest"]) == 16 and facts["openvla_ros.clock"] == "log times are of this computer's clock"

    start(*CLI, "play", str(bag), "--rate", "20", "--topics", "/instruction", "--linger-s", "60")
    assert ended(start(sys.executable, "-c", LATE))["instruction"] == "put the red block in the bowl"


def test_drivers_and_services_begin_and_end_recordings(start: Start, tmp_path: Path) -> None:
    """Each is a folder of its own that begins with what is latched; the last one ends by a kill."""
    talker = start(*TALK)
    until(talker.stdout, "ready")
    tell(talker, "driver HOLD")
    recorder = start(*CLI, "record", "-o", str(tmp_path / "day"), "--when-driver", "policy,human", "--plain")
    until(recorder.stderr, "waiting for driver policy or human, it is hold")
    assert not (tmp_path / "day").exists()
    tell(talker, "driver POLICY")
    until(recorder.stderr, "recording: ")
    tell(talker, "driver HOLD")
    until(recorder.stderr, "waiting for driver")
    tell(talker, "driver HUMAN")
    until(recorder.stderr, f"recording: {tmp_path / 'day_002'}")
    tell(talker, "call stop")
    assert json.loads(until(talker.stdout, "success")) == {"success": True, "message": "not recording; ~/start begins another"}
    until(recorder.stderr, "paused: call ~/start")
    tell(talker, "call start")
    assert json.loads(until(talker.stdout, "success")) == {"success": True, "message": "recording"}
    wait_for(lambda: len(messages_of(tmp_path / "day_003", "/image/compressed")) > 10)
    os.kill(child_of(recorder), signal.SIGKILL)
    recorder.wait()
    drivers = []
    for name in ("day", "day_002", "day_003"):
        with Recording(tmp_path / name) as recording:
            drivers.append([recording.decode(raw).data for raw in recording.messages([recording.topic("/driver")])])
            assert recording.topic("/instruction").count == 1
        assert messages_of(tmp_path / name, "/image/compressed")
    assert [said[0] for said in drivers] == ["POLICY", "HUMAN", "HUMAN"]
    states = [facts_of(tmp_path / name)["openvla_ros.state"] for name in ("day", "day_002", "day_003")]
    assert states == ["finished", "finished", "recording"]


def wait_for(found: Callable[[], Any]) -> None:
    """Until something is on the disk, in recordings that are being written."""
    until_s = monotonic() + 60.0  # a policy_node may have to load torch on a busy computer
    while monotonic() < until_s:
        with suppress(BagError, FileNotFoundError, KeyError):
            if found():
                return
        sleep(0.1)
    raise AssertionError("no recording grows")


def test_log_times_follow_the_clock_that_is_published(start: Start, tmp_path: Path) -> None:
    """Where /clock goes back, another recording begins; where it is found late, what was recorded before is one of its own."""
    make_episode(tmp_path / "episode", EpisodeSettings(seconds=6.0, width=64, height=48))
    player = start(*CLI, "play", str(tmp_path / "episode"), "--rate", "2", "--loop")
    until(player.stderr, "left out")
    recorder = start(*CLI, "record", "-o", str(tmp_path / "day"), "--all", "--plain")
    until(recorder.stderr, "recording")

    def rounds() -> list[Path]:
        bags = [bag for bag in sorted(tmp_path.glob("day*")) if facts_of(bag)["openvla_ros.clock"] == "log times are of /clock"]
        return [bag for bag in bags if len(messages_of(bag, "/camera/image_raw/compressed")) > 2]

    wait_for(lambda: len(rounds()) > 1)
    os.kill(child_of(recorder), signal.SIGINT)
    assert recorder.wait(30) == 0
    with Recording(tmp_path / "episode") as recording:
        start_ns, end_ns = recording.start_ns, recording.end_ns
    for bag in rounds():
        with Recording(bag) as recording:
            assert start_ns <= recording.start_ns < recording.end_ns <= end_ns + 10**9
            assert "/clock" not in {topic.name for topic in recording.topics}
            pictures = list(recording.messages([recording.topic("/camera/image_raw/compressed")]))
            stamps_ns = [stamp_ns(recording.decode(raw)) for raw in pictures]
            assert stamps_ns == sorted(stamps_ns)  # one run of time


def stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


SLOW_DISK = "import os, time; write = os.write; os.write = lambda file, data: time.sleep(0.2) or write(file, data); "


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk of 3 MB; None where it cannot be mounted (no root, a locked container)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    yield None if mounted.returncode else folder
    if mounted.returncode == 0:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_slow_and_a_full_disk_are_said_and_what_they_cost_is_counted(start: Start, tmp_path: Path, small_disk: Path | None) -> None:
    talker = start(*TALK, "100000")
    until(talker.stdout, "ready")
    slow = start(CLI[0], CLI[1], SLOW_DISK + CLI[2], "record", "-o", str(tmp_path / "day"), "--queue-mb", "1", "--json")
    if small_disk is not None:
        said = ended(start(*CLI, "record", "-o", str(small_disk / "day"), "--json"), code=2)
        assert "recording ended: the disk is full" in said["error"] and "--output" in said["error"]
    wait_for(lambda: warnings_in(tmp_path / "day"))
    os.kill(child_of(slow), signal.SIGINT)
    said = ended(slow)
    warned = warnings_in(tmp_path / "day")
    assert "compressed pictures" in warned[-1].message
    counted = [int(entry.value) for entry in warned[-1].values if entry.key == "dropped /image/compressed"]
    (bag,) = said["bags"]
    assert 0 < counted[0] <= said["dropped"]["/image/compressed"] == bag["dropped"]["/image/compressed"]
    assert yaml.safe_load(facts_of(tmp_path / "day")["openvla_ros.dropped"]) == bag["dropped"]
    tell(talker, "end")
    sent = json.loads(talker.communicate(timeout=30)[0])
    assert_part_of(messages_of(tmp_path / "day", "/image/compressed"), sent["/image/compressed"], gaps=True)
    assert_part_of(messages_of(tmp_path / "day", "/joint_states"), sent["/joint_states"], gaps=True)
    if small_disk is not None:
        assert_part_of(messages_of(small_disk / "day", "/image/compressed"), sent["/image/compressed"])


def warnings_in(bag: Path) -> list[Any]:
    """What the recorder said on /diagnostics about its disk being too slow."""
    with Recording(bag) as recording:
        arrays = [recording.decode(raw) for raw in recording.messages([recording.topic("/diagnostics")])]
    return [status for array in arrays for status in array.status
            if status.name == "/recorder: recording" and "the disk is too slow" in status.message]
