"""Recordings of both kinds read alike, damaged ones say what to do, and stored definitions decide what a type is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mcap.writer
import numpy as np
import pytest
from mcap.reader import make_reader
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from openvla_ros.bags.read import Quality, Recording
from openvla_ros.errors import BagError

MakeBag = Callable[..., Path]
FOREVER = QosTime(9223372036, 854775807)


def read_all(path: Path) -> list[tuple[str, int, bytes]]:
    with Recording(path) as recording:
        return [(raw.topic.name, raw.log_ns, raw.data) for raw in recording.messages(recording.topics)]


def entries(messages: Any, count: int = 20) -> list[Any]:
    return [one for k in range(count) for one in (messages.image(100 * k, k), messages.numbers(100 * k + 2, [k] * 7))]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_both_storages_give_the_same_messages_in_order(write_bag: MakeBag, messages: Any, storage: str) -> None:
    read = read_all(write_bag(entries(messages), storage=storage))
    assert [log_ns for _, log_ns, _ in read] == sorted(log_ns for _, log_ns, _ in read)
    assert [name for name, _, _ in read] == ["/camera/image_raw", "/teleop/action7"] * 20
    assert read == read_all(write_bag(entries(messages), name="other", storage="mcap"))


@pytest.mark.parametrize("storage", ["mcap", "sqlite3", "cut"])
def test_a_window_of_time_is_what_lies_in_it(write_bag: MakeBag, messages: Any, storage: str) -> None:
    path = write_bag(entries(messages), storage=storage.replace("cut", "mcap"))
    if storage == "cut":
        file = next(path.glob("*.mcap"))
        file.write_bytes(file.read_bytes()[:-100])
    whole, t0_ns = read_all(path), messages.t0_ns
    with Recording(path) as recording:
        def window(start_ms: int, stop_ms: int) -> list[tuple[str, int, bytes]]:
            return [(raw.topic.name, raw.log_ns, raw.data) for raw in recording.messages(
                recording.topics, t0_ns + start_ms * 10**6, t0_ns + stop_ms * 10**6)]

        assert window(500, 502) == [one for one in whole if one[1] == t0_ns + 500 * 10**6]
        assert window(500, 503) == [one for one in whole if 0 <= one[1] - t0_ns - 500 * 10**6 <= 2 * 10**6]
        assert window(503, 600) == []


def test_a_storage_file_alone_is_enough(write_bag: MakeBag, messages: Any) -> None:
    folder = write_bag(entries(messages))
    assert read_all(folder / "bag.mcap") == read_all(folder)


def test_topics_say_name_type_count_and_span(write_bag: MakeBag, messages: Any) -> None:
    with Recording(write_bag(entries(messages))) as recording:
        assert [(topic.name, topic.type, topic.count) for topic in recording.topics] == [
            ("/camera/image_raw", "sensor_msgs/msg/Image", 20), ("/teleop/action7", "std_msgs/msg/Float64MultiArray", 20)]
        assert recording.start_ns == messages.t0_ns and recording.end_ns == messages.t0_ns + 1_902_000_000
        assert recording.topic("camera/image_raw") is recording.topic("/camera/image_raw")
        with pytest.raises(BagError, match=r"no topic '/image'; it has /camera/image_raw"):
            recording.topic("/image")


@pytest.mark.parametrize("mode", [CompressionMode.MESSAGE, CompressionMode.FILE])
def test_compressed_recordings_are_read(tmp_path: Path, messages: Any, mode: CompressionMode) -> None:
    writer = Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        channel = writer.add_connection("/instruction", "std_msgs/msg/String", typestore=messages.store)
        writer.write(channel, 5, messages.store.serialize_cdr(messages.text(0, "go")[3], "std_msgs/msg/String"))
    with Recording(tmp_path / "bag") as recording:
        assert [recording.decode(raw).data for raw in recording.messages(recording.topics)] == ["go"]


def test_quality_is_the_least_that_was_offered(tmp_path: Path, messages: Any) -> None:
    def profile(reliability: QosReliability, durability: QosDurability, depth: int) -> Qos:
        return Qos(QosHistory.KEEP_LAST, depth, reliability, durability, FOREVER, FOREVER, QosLiveliness.AUTOMATIC, FOREVER, False)

    latched = profile(QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, 1)
    weak = profile(QosReliability.BEST_EFFORT, QosDurability.VOLATILE, 5)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for name, profiles in (("/latched", [latched]), ("/mixed", [latched, weak]), ("/unsaid", [])):
            channel = writer.add_connection(name, "std_msgs/msg/String", typestore=messages.store, offered_qos_profiles=profiles)
            writer.write(channel, 5, messages.store.serialize_cdr(messages.text(0, "go")[3], "std_msgs/msg/String"))
    with Recording(tmp_path / "bag") as recording:
        assert {topic.name: topic.quality for topic in recording.topics} == {
            "/latched": Quality(True, True, 1), "/mixed": Quality(False, False, 5), "/unsaid": None}


# --- types


def test_a_custom_type_is_decoded_from_the_stored_definition(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("float32 grip\nuint8[] bytes\n", "lab_msgs/msg/Hand"))
    kind = "lab_msgs/msg/Hand"
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        channel = writer.add_connection("/hand", kind, typestore=store)
        writer.write(channel, 5, store.serialize_cdr(store.types[kind](0.5, np.array([1, 2], np.uint8)), kind))
    with Recording(tmp_path / "bag") as recording:
        hand = recording.decode(next(recording.messages(recording.topics)))
    assert hand.grip == 0.5 and hand.bytes.tolist() == [1, 2]


def test_a_stored_definition_wins_over_the_standard_one(tmp_path: Path) -> None:
    """A day recorded with another version of a standard message is still read as it was written."""
    store = get_typestore(Stores.EMPTY)
    store.register(get_types_from_msg("uint32 number\nstring data\n", "std_msgs/msg/String"))
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        channel = writer.add_connection("/instruction", "std_msgs/msg/String", typestore=store)
        writer.write(channel, 5, store.serialize_cdr(store.types["std_msgs/msg/String"](7, "go"), "std_msgs/msg/String"))
    with Recording(tmp_path / "bag") as recording:
        assert recording.decode(next(recording.messages(recording.topics))).data == "go"


def test_one_broken_definition_leaves_the_other_topics_readable(tmp_path: Path, messages: Any) -> None:
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        odd = writer.add_connection("/odd", "lab_msgs/msg/Odd", msgdef="int32 = { ?\n", rihs01="RIHS01_" + "0" * 64)
        good = writer.add_connection("/instruction", "std_msgs/msg/String", typestore=messages.store)
        writer.write(odd, 5, b"\0\1\0\0....")
        writer.write(good, 6, messages.store.serialize_cdr(messages.text(0, "go")[3], "std_msgs/msg/String"))
    with Recording(tmp_path / "bag") as recording:
        first, second = recording.messages(recording.topics)
        assert recording.decode(second).data == "go"
        with pytest.raises(BagError, match=r"/odd .* cannot be decoded"):
            recording.decode(first)


def test_bytes_that_do_not_fit_their_type_are_a_bag_error(tmp_path: Path, messages: Any) -> None:
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.write(writer.add_connection("/instruction", "std_msgs/msg/String", typestore=messages.store), 5, b"\0\1\0\0\xff\0\0\0a")
    with Recording(tmp_path / "bag") as recording, pytest.raises(BagError, match="does not fit its type"):
        recording.decode(next(recording.messages(recording.topics)))


# --- bad input


def test_no_such_recording(tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"no recording at .*nowhere"):
        Recording(tmp_path / "nowhere")


def test_a_ros1_bag_names_the_converter(tmp_path: Path) -> None:
    (tmp_path / "day.bag").write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(BagError, match="rosbags-convert"):
        Recording(tmp_path / "day.bag")


def test_a_folder_that_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"no metadata\.yaml.*Name a rosbag2 folder"):
        Recording(tmp_path)


def test_an_sqlite_recorder_that_was_killed_leaves_a_folder_without_metadata(write_bag: MakeBag, messages: Any) -> None:
    folder = write_bag(entries(messages), storage="sqlite3")
    (folder / "metadata.yaml").unlink()
    with pytest.raises(BagError, match=r"Name one of its files \(bag\.db3\), or run 'ros2 bag reindex"):
        Recording(folder)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, content in (("a.mcap", b""), ("b.mcap", b"\0" * 100), ("c.db3", b""), ("d.db3", b"x" * 5000), ("e.txt", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BagError, match=f"{name}.*cannot be read"):
            Recording(tmp_path / name)


@pytest.mark.parametrize("metadata", ["", "hello", "a: [", "rosbag2_bagfile_information:\n",
                                      "rosbag2_bagfile_information: {version: 99}\n"])
def test_broken_metadata_is_a_bag_error(write_bag: MakeBag, messages: Any, metadata: str) -> None:
    folder = write_bag(entries(messages))
    (folder / "metadata.yaml").write_text(metadata)
    with pytest.raises(BagError, match="cannot be read"):
        Recording(folder)


def test_a_missing_storage_file_is_named(write_bag: MakeBag, messages: Any) -> None:
    folder = write_bag(entries(messages))
    (folder / "bag.mcap").unlink()
    with pytest.raises(BagError, match=r"bag\.mcap"):
        Recording(folder)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_recording_without_messages_is_refused(write_bag: MakeBag, messages: Any, storage: str) -> None:
    with pytest.raises(BagError, match=r"holds no message"):
        Recording(write_bag([], storage=storage))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_sqlite_recording_is_refused_with_a_remedy(write_bag: MakeBag, messages: Any, kept: float) -> None:
    folder = write_bag(entries(messages, 60), storage="sqlite3")
    cut(folder / "bag.db3", kept)
    with pytest.raises(BagError, match="reindex"):
        read_all(folder)


# --- mcap without its index


def cut(file: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])


def described(path: Path) -> tuple[list[Any], int, int, tuple[str, ...]]:
    with Recording(path) as recording:
        return [(topic.name, topic.type, topic.count, topic.quality) for topic in recording.topics], recording.start_ns, recording.end_ns, \
            recording.notes


def without_index(file: Path, chunked: bool = True) -> None:
    """Write the file again as a recorder does that keeps no index, with a second library."""
    with file.open("rb") as stream:
        reader = make_reader(stream)
        found = [(schema, channel, message) for schema, channel, message in reader.iter_messages()]
    with file.open("wb") as stream:
        writer = mcap.writer.Writer(stream, chunk_size=2000, use_chunking=chunked, use_summary_offsets=False, repeat_schemas=False,
                                    repeat_channels=False, index_types=mcap.writer.IndexType.NONE, use_statistics=False)
        writer.start(profile="ros2")
        schemas, channels = dict[int, int](), dict[int, int]()
        for schema, channel, message in found:
            if schema.id not in schemas:
                schemas[schema.id] = writer.register_schema(schema.name, schema.encoding, schema.data)
            if channel.id not in channels:
                channels[channel.id] = writer.register_channel(channel.topic, "cdr", schemas[schema.id], channel.metadata)
            writer.add_message(channels[channel.id], message.log_time, message.data, message.log_time)
        writer.finish()


@pytest.mark.parametrize("chunked", [True, False])
def test_an_mcap_without_index_reads_like_the_one_it_was_made_from(write_bag: MakeBag, messages: Any, chunked: bool) -> None:
    folder = write_bag(entries(messages, 60))
    whole, before = read_all(folder), described(folder)
    without_index(folder / "bag.mcap", chunked)
    assert read_all(folder) == whole
    after = described(folder)
    assert after[:3] == before[:3] and not before[3]
    assert "read from front to back" in after[3][0]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("metadata", [True, False])
def test_a_killed_recorder_loses_only_the_end(write_bag: MakeBag, messages: Any, kept: float, metadata: bool) -> None:
    folder = write_bag([one for k in range(2000) for one in (messages.image(k, k % 256), messages.numbers(k, [k] * 7))])
    whole = read_all(folder)
    cut(folder / "bag.mcap", kept)
    if not metadata:
        (folder / "metadata.yaml").unlink()
    read = read_all(folder)
    assert read == whole[:len(read)] and len(read) >= int(kept * len(whole)) - 200  # an index is about a tenth of such small messages
    topics, start_ns, end_ns, notes = described(folder)
    assert sum(topic[2] for topic in topics) == len(read) and (start_ns, end_ns) == (read[0][1], read[-1][1])
    assert "still being written, or was cut off just now" in notes[0] and "bag.mcap was read as far" in notes[0]
    os.utime(folder / "bag.mcap", (1_700_000_000, 1_700_000_000))
    assert "was cut off while recording" in described(folder)[3][0]


def test_a_compressed_chunk_that_was_cut_is_left_out(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/bags/bridge_v2_pot_640x480_raw/bridge_v2_pot_640x480_raw.mcap"
    whole = read_all(source)
    (tmp_path / "cut.mcap").write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    read = read_all(tmp_path / "cut.mcap")
    assert 0 < len(read) < len(whole) and read == whole[:len(read)]


def test_files_of_a_recording_are_read_in_the_order_of_their_numbers(write_bag: MakeBag, messages: Any, tmp_path: Path) -> None:
    folder = tmp_path / "day"
    folder.mkdir()
    for number in (2, 10, 1):
        part = write_bag([messages.text(number, str(number))], name=f"part{number}")
        (part / f"part{number}.mcap").rename(folder / f"day_{number}.mcap")
    with Recording(folder) as recording:
        assert [recording.decode(raw).data for raw in recording.messages(recording.topics)] == ["1", "2", "10"]
        assert recording.topics[0].count == 3 and "no metadata.yaml" in recording.notes[0]


def test_a_recording_that_grows_is_read_as_it_was_when_it_was_opened(write_bag: MakeBag, messages: Any) -> None:
    file = write_bag(entries(messages, 60)) / "bag.mcap"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with Recording(file) as recording:
        count = sum(topic.count for topic in recording.topics)
        with file.open("ab") as stream:
            stream.write(content[len(content) // 2:])
        assert len(list(recording.messages(recording.topics))) == count


def test_a_recording_that_has_only_just_begun_holds_no_message(write_bag: MakeBag, messages: Any) -> None:
    file = write_bag(entries(messages)) / "bag.mcap"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BagError, match=r"holds no message .*still being written"):
        Recording(file)


def test_a_recording_that_may_not_be_read_names_the_permissions(write_bag: MakeBag, messages: Any) -> None:
    folder = write_bag(entries(messages))
    (folder / "bag.mcap").chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)  # root may read everything; somebody else is kept out at the latest by the test's own folder
    try:
        with pytest.raises(BagError, match=r"may not be read.*permissions"):
            Recording(folder)
    finally:
        os.seteuid(before)


def test_no_damage_escapes_as_another_error(write_bag: MakeBag, messages: Any, tmp_path: Path) -> None:
    """Bytes are overwritten all over both storages; every outcome is messages or a BagError."""
    rng = np.random.default_rng(6)
    for storage in ("mcap", "sqlite3"):
        whole = write_bag(entries(messages, 8), name=storage, storage=storage)
        for attempt in range(60):
            folder = tmp_path / f"{storage}-{attempt}"
            shutil.copytree(whole, folder)
            file = next(path for path in folder.iterdir() if path.suffix in (".mcap", ".db3"))
            content = np.frombuffer(file.read_bytes(), np.uint8).copy()
            place = int(rng.integers(0, content.size))
            content[place:place + 16] = rng.integers(0, 256, content[place:place + 16].size)
            file.write_bytes(content.tobytes())
            try:
                with Recording(folder) as recording:
                    for raw in recording.messages(recording.topics):
                        recording.decode(raw)
            except BagError:
                pass
            shutil.rmtree(folder)
