"""What is written is read by our reader, by rosbags and by mcap with its ROS 2 decoder; also after a kill, from a full and a slow disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.rosbag2 import Reader

from openvla_ros.bags.mcap_file import FACTS
from openvla_ros.bags.read import Quality, Recording
from openvla_ros.bags.sample import Offer, Sample, Source
from openvla_ros.bags.scribe import DROPPED, QueueLimits, Scribe
from openvla_ros.bags.write import STATE, BagWriter, WriteSettings, next_folder
from openvla_ros.errors import BagError, ConfigurationError

T0_NS = 1_700_000_000_000_000_000
MS_NS = 1_000_000
LATCHED = Offer(durability=1)
TEXT = "string data\n"

Say = Callable[..., Sample]


@pytest.fixture
def say(messages: Any) -> Say:
    """say(source, at_ms, text) -> the sample of a std_msgs/String."""

    def make(source: Source, at_ms: float, text: str) -> Sample:
        data = messages.store.serialize_cdr(messages.text(0, text)[3], "std_msgs/msg/String")
        return Sample(source, T0_NS + round(at_ms * MS_NS), T0_NS + round(at_ms * MS_NS) - 1000, bytes(data))

    return make


def words(name: str = "/words", *offers: Offer) -> Source:
    return Source(name, "std_msgs/msg/String", offers or (Offer(),), "RIHS01_" + "1" * 64, TEXT)


def ours(path: Path) -> list[tuple[str, int, str]]:
    with Recording(path) as recording:
        return [(raw.topic.name, raw.log_ns, recording.decode(raw).data) for raw in recording.messages(recording.topics)]


def theirs(path: Path) -> list[tuple[str, int, str]]:
    """What one file says to the mcap library and its ROS 2 decoder."""
    with path.open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        return [(channel.topic, message.log_time, decoded.data) for _, channel, message, decoded in reader.iter_decoded_messages()]


def metadata(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"]


def facts_in(path: Path) -> list[dict[str, str]]:
    with path.open("rb") as file:
        return [record.metadata for record in make_reader(file).iter_metadata() if record.name == FACTS]


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_three_readers_read_the_same(tmp_path: Path, say: Say, compression: str) -> None:
    driver = words("/driver", LATCHED)
    samples = [say(driver, 0, "HOLD"), *(say(words(), k, f"word {k}") for k in range(1, 500)), say(driver, 500, "POLICY")]
    writer = BagWriter(tmp_path / "day", WriteSettings(compression=compression), {"openvla_ros.robot": "wx250s"}, distribution="jazzy")
    for sample in samples:
        writer.write(sample)
    writer.close()
    expected = [("/driver" if k in (0, 500) else "/words", T0_NS + k * MS_NS, {0: "HOLD", 500: "POLICY"}.get(k, f"word {k}"))
                for k in range(501)]
    assert ours(tmp_path / "day") == theirs(tmp_path / "day/day_0.mcap") == expected
    with Reader(tmp_path / "day") as reader:
        assert [(connection.topic, log_ns, bytes(data)) for connection, log_ns, data in reader.messages()] == [
            (sample.source.name, sample.log_ns, sample.data) for sample in samples]
        assert {connection.digest for connection in reader.connections} == {"RIHS01_" + "1" * 64}
    with Recording(tmp_path / "day") as recording:
        assert {topic.name: topic.quality for topic in recording.topics} == {
            "/driver": Quality(True, True, 1), "/words": Quality(True, False, 1)}
    said = metadata(tmp_path / "day")
    assert said["message_count"] == 501 and said["ros_distro"] == "jazzy" and said["relative_file_paths"] == ["day_0.mcap"]
    assert said["starting_time"]["nanoseconds_since_epoch"] == T0_NS and said["duration"]["nanoseconds"] == 500 * MS_NS
    assert said["custom_data"] == {"openvla_ros.robot": "wx250s", STATE: "finished"}
    assert facts_in(tmp_path / "day/day_0.mcap") == [{"openvla_ros.robot": "wx250s"}]
    assert sorted(path.name for path in (tmp_path / "day").iterdir()) == ["day_0.mcap", "metadata.yaml"]


def test_facts_that_are_learned_later_are_said_too(tmp_path: Path, say: Say) -> None:
    writer = BagWriter(tmp_path / "day", WriteSettings(), {"openvla_ros.robot": ""})
    writer.write(say(words(), 0, "one"))
    writer.describe({"openvla_ros.robot": "wx250s", "openvla_ros.robot_profile": "name: wx250s\nlimits: {}\n"})
    assert metadata(tmp_path / "day")["custom_data"]["openvla_ros.robot_profile"] == "name: wx250s\nlimits: {}\n"
    assert metadata(tmp_path / "day")["custom_data"][STATE] == "recording"
    writer.close()
    assert [facts["openvla_ros.robot"] for facts in facts_in(tmp_path / "day/day_0.mcap")] == ["", "wx250s"]


@pytest.mark.parametrize("settings", [WriteSettings(split_s=2.0), WriteSettings(split_bytes=300_000)])
def test_each_file_of_a_split_recording_stands_alone(tmp_path: Path, say: Say, settings: WriteSettings) -> None:
    driver, transforms = words("/driver", LATCHED), words("/tf_static", LATCHED)
    writer = BagWriter(tmp_path / "day", settings, {"openvla_ros.robot": "wx250s"})
    for text in ("base", "camera"):
        writer.write(say(transforms, 0, text))
    for k, text in enumerate(("HOLD", "POLICY")):
        writer.write(say(driver, k + 1, text))
    for k in range(60):
        writer.write(say(words(), 100 * (k + 1), f"{k:03}" + "x" * 20_000))
    writer.close()
    files = writer.files
    assert len(files) >= 3 and metadata(tmp_path / "day")["relative_file_paths"] == list(files)
    seen = []
    for name in files:
        read = theirs(tmp_path / "day" / name)
        seen += [text[:3] for topic, _, text in read if topic == "/words"]
        said = {topic: [text for other, _, text in read if other == topic] for topic in ("/driver", "/tf_static")}
        assert said["/tf_static"] == ["base", "camera"]
        assert said["/driver"] == (["HOLD", "POLICY"] if name == files[0] else ["POLICY"])
        assert read[0][1] == min(log_ns for _, log_ns, _ in read)  # what is repeated is not said to be old
        assert facts_in(tmp_path / "day" / name) == [{"openvla_ros.robot": "wx250s"}]
        with Recording(tmp_path / "day" / name) as recording:
            assert recording.topic("/driver").quality == Quality(True, True, 1)
    assert seen == [f"{k:03}" for k in range(60)]
    whole = ours(tmp_path / "day")
    assert [text[:3] for topic, _, text in whole if topic == "/words"] == seen
    assert len(whole) == metadata(tmp_path / "day")["message_count"] == writer.messages


def test_a_topic_keeps_the_quality_it_was_first_heard_with(tmp_path: Path, say: Say) -> None:
    """rosbags takes a topic whose quality differs between two files for two topics, and would read the one only."""
    writer = BagWriter(tmp_path / "day", WriteSettings(split_s=1.0), {})
    writer.write(say(words("/words", LATCHED), 0, "one"))
    writer.write(say(words("/words", Offer(reliability=2)), 5000, "two"))
    writer.close()
    assert [text for _, _, text in ours(tmp_path / "day")] == ["one", "one", "two"]


def test_a_type_without_a_definition_is_kept_as_bytes(tmp_path: Path) -> None:
    writer = BagWriter(tmp_path / "day", WriteSettings(), {})
    writer.write(Sample(Source("/hand", "lab_msgs/msg/Hand"), T0_NS, T0_NS, b"\0\1\0\0abcd"))
    writer.close()
    with Recording(tmp_path / "day") as recording:
        (raw,) = recording.messages(recording.topics)
        assert raw.data == b"\0\1\0\0abcd"
        with pytest.raises(BagError, match="lab_msgs/msg/Hand"):
            recording.decode(raw)


def test_nothing_is_replaced_and_an_empty_recording_leaves_nothing(tmp_path: Path) -> None:
    writer = BagWriter(tmp_path / "day", WriteSettings(), {})
    with pytest.raises(BagError, match=r"exists already.*Choose another --output"):
        BagWriter(tmp_path / "day", WriteSettings(), {})
    assert next_folder(tmp_path / "day") == tmp_path / "day_002"
    (tmp_path / "day_002").mkdir()
    assert next_folder(tmp_path / "day") == tmp_path / "day_003"
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["day_002"]
    (tmp_path / "file").touch()
    with pytest.raises(BagError, match=r"Not a directory.*that you may write"):
        BagWriter(tmp_path / "file/day", WriteSettings(), {})


@pytest.mark.parametrize("wrong", [{"compression": "bz2"}, {"split_bytes": 1000}, {"split_s": 0.1}, {"split_s": float("nan")}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        WriteSettings(**wrong)
    with pytest.raises(ConfigurationError, match="expected"):
        QueueLimits(bytes=0)


# --- a disk and a process that fail

KILLED = """
import sys, time
from pathlib import Path
from openvla_ros.bags.scribe import FLUSH_S, Scribe
from openvla_ros.bags.sample import Offer, Sample, Source
from openvla_ros.bags.write import WriteSettings
scribe = Scribe(WriteSettings(split_s=5.0))
scribe.describe({"openvla_ros.robot": "wx250s"})
scribe.begin(Path(sys.argv[1]))
latched = Source("/driver", "std_msgs/msg/String", (Offer(durability=1),), definition="string data\\n")
words = Source("/words", "std_msgs/msg/String", (Offer(),), definition="string data\\n")
scribe.offer(Sample(latched, 10**18, 10**18, b"\\0\\1\\0\\0\\5\\0\\0\\0HOLD\\0"))
for k in range(10**6):
    scribe.offer(Sample(words, 10**18 + k * 10**7, 10**18, b"\\0\\1\\0\\0\\7\\0\\0\\0%06d\\0" % k))
    if k % 10 == 9:
        print(k, time.monotonic(), flush=True)
        time.sleep(0.01)
"""


def test_a_kill_costs_no_more_than_the_last_second(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "day")], env=clean_environment, stdout=subprocess.PIPE,
                               text=True)
    said = [(int(line.split()[0]), float(line.split()[1])) for line in iter_until(process, lambda line: int(line.split()[0]) >= 2000)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed_s = said[-1][1]
    read = [(name, text) for name, _, text in ours(tmp_path / "day") if name == "/words"]
    assert [int(text) for _, text in read] == list(range(len(read)))  # from the first on, nothing between is missing
    assert len(read) > max(k for k, at_s in said if at_s < killed_s - 1.0)
    assert {name for name, _, _ in ours(tmp_path / "day")} == {"/driver", "/words"}
    assert len(list((tmp_path / "day").glob("*.mcap"))) >= 4  # a finished file, then one that was cut off
    assert metadata(tmp_path / "day")["custom_data"] == {"openvla_ros.robot": "wx250s", STATE: "recording"}


def iter_until(process: subprocess.Popen[str], last: Callable[[str], bool]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if last(line):
            return
    raise AssertionError("the process ended early")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("size", [10_000, 700_000])
def test_a_full_disk_ends_the_recording_and_leaves_it_readable(small_disk: Path, say: Say, size: int) -> None:
    """Small messages leave room for an index; where the last message alone is larger than the reserve, the file stays without one."""
    scribe = Scribe(WriteSettings())
    scribe.begin(small_disk / "day")
    offered = 0
    while scribe.failure is None:
        scribe.offer(say(words(), offered, f"{offered:06}" + "x" * size))
        offered += 1
    scribe.close(5.0)
    (bag,) = scribe.progress().bags
    assert scribe.failure is not None and "the disk is full" in str(scribe.failure) and "choose another disk" in str(scribe.failure)
    read = [int(text[:6]) for _, _, text in ours(small_disk / "day")]
    assert read == list(range(len(read))) and len(read) * size > 1_000_000 and len(read) == bag.messages
    if size == 10_000:
        assert len(read) == len(theirs(small_disk / "day/day_0.mcap")) == metadata(small_disk / "day")["message_count"]
        assert metadata(small_disk / "day")["custom_data"][STATE] == "the disk is full"
    else:
        assert "without an index" in str(scribe.failure)


def test_a_disk_that_takes_no_second_file_leaves_the_first_with_its_index(tmp_path: Path, say: Say) -> None:
    def create(path: Path) -> int:
        if path.name != "day_0.mcap":
            raise OSError(errno.ENOSPC, "no space")
        return os.open(path, os.O_CREAT | os.O_WRONLY)

    scribe = Scribe(WriteSettings(split_s=1.0), create=create)
    scribe.begin(tmp_path / "day")
    for k in range(3):
        scribe.offer(say(words(), 600 * k, f"word {k}"))
    scribe.close(30.0)
    assert scribe.failure is not None and "the disk is full" in str(scribe.failure) and "without an index" not in str(scribe.failure)
    assert [text for _, _, text in theirs(tmp_path / "day/day_0.mcap")] == ["word 0", "word 1"]
    assert metadata(tmp_path / "day")["custom_data"][STATE] == "the disk is full"


def test_a_full_disk_is_said_before_anything_is_recorded(small_disk: Path) -> None:
    (small_disk / "old").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    scribe = Scribe(WriteSettings())
    scribe.begin(small_disk / "day")
    scribe.close(5.0)
    assert scribe.failure is not None and "cannot be begun: the disk is full" in str(scribe.failure)


class Drain:
    """A pipe that takes what is written as slowly as its reader lets it: a slow disk. `content` is what came out of it."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.open = threading.Event()
        self.blocked = threading.Event()
        self.emptied = threading.Event()
        self.content = bytearray()
        threading.Thread(target=self._run, daemon=True).start()

    def create(self, path: Path) -> int:
        return self._write

    def _run(self) -> None:
        while part := os.read(self._read, 65536):
            self.content += part
            if len(self.content) > 100_000:  # the disk stands still in the middle of a message
                self.blocked.set()
                self.open.wait()
        self.emptied.set()


def test_a_slow_disk_drops_pictures_first_counts_them_and_blocks_nobody(tmp_path: Path, say: Say, messages: Any) -> None:
    drain = Drain()
    scribe = Scribe(WriteSettings(), QueueLimits(bytes=2**20, messages=200), create=drain.create)
    scribe.begin(tmp_path / "day")
    picture, number = Source("/image", "std_msgs/msg/String", (Offer(),), definition=TEXT), 0
    while not drain.blocked.is_set():
        scribe.offer(say(picture, number, f"{number:03}" + "x" * 100_000))
        number += 1
    taken = [scribe.offer(say(picture, number + k, "x" * 100_000)) for k in range(20)]
    assert not any(taken[8:]) and 0 < scribe.progress().waiting_bytes <= 0.75 * 2**20 + 100_000
    assert all(scribe.offer(say(words(), number + 20 + k, f"{k:03}")) for k in range(100))  # there is still room for what is small
    refused = [scribe.offer(say(words(), number + 120 + k, "late")) for k in range(200)]
    assert not all(refused) and scribe.progress().waiting_messages <= 200
    dropped = dict(scribe.progress().dropped)
    assert dropped["/image"] >= taken.count(False) >= 12 and dropped["/words"] == refused.count(False)
    drain.open.set()
    scribe.close(20.0)
    (bag,) = scribe.progress().bags
    assert scribe.failure is None and dict(bag.dropped) == dropped
    assert yaml.safe_load(metadata(tmp_path / "day")["custom_data"][DROPPED]) == dropped
    assert drain.emptied.wait(30.0)  # what the scribe has written may still be in the pipe
    (tmp_path / "out.mcap").write_bytes(drain.content)
    read = theirs(tmp_path / "out.mcap")
    assert len(read) == bag.messages
    assert [text for topic, _, text in read if topic == "/words"][:100] == [f"{k:03}" for k in range(100)]


def test_a_disk_that_takes_nothing_more_is_given_up(tmp_path: Path, say: Say) -> None:
    drain = Drain()
    scribe = Scribe(WriteSettings(), create=drain.create)
    scribe.begin(tmp_path / "day")
    for k in range(20):
        scribe.offer(say(words(), k, "x" * 100_000))
    drain.blocked.wait()
    assert not scribe.close(0.1)
    assert "takes nothing any more" in str(scribe.failure) and scribe.progress().dropped["/words"] > 5
    drain.open.set()


def test_several_recordings_of_one_run_each_begin_with_what_is_latched(tmp_path: Path, say: Say) -> None:
    scribe = Scribe(WriteSettings())
    driver = words("/driver", LATCHED)
    scribe.offer(say(driver, 0, "HOLD"))  # before anything is recorded
    scribe.begin(tmp_path / "day")
    scribe.offer(say(words(), 10, "one"))
    scribe.end()
    scribe.offer(say(driver, 20, "POLICY"))
    scribe.begin(tmp_path / "day")
    scribe.offer(say(words(), 30, "two"))
    scribe.end()
    scribe.begin(tmp_path / "day")  # nothing comes
    scribe.close(10.0)
    assert scribe.failure is None
    assert [bag.path.name for bag in scribe.progress().bags] == ["day", "day_002"]
    assert [[(name, text) for name, _, text in ours(bag.path)] for bag in scribe.progress().bags] == [
        [("/driver", "HOLD"), ("/words", "one")], [("/driver", "POLICY"), ("/words", "two")]]
    assert not (tmp_path / "day_003").exists()
