"""Frames come with the instruction that held and the action that was recorded after them; real recordings as their README says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from openvla_ros.bags.frames import Frame, Tally, frames, pick, select
from openvla_ros.bags.read import Recording
from openvla_ros.errors import BagError, InstructionError

MakeBag = Callable[..., Path]


def read(path: Path, stride: int = 1, limit: int = 0, **names: str) -> tuple[list[Frame], Tally]:
    tally = Tally()
    with Recording(path) as recording:
        return list(frames(recording, select(recording, **names), tally, stride, limit)), tally


# --- instructions


def test_the_instruction_that_held_goes_with_each_frame(write_bag: MakeBag, messages: Any) -> None:
    found, tally = read(write_bag([
        messages.image(0), messages.text(50, "open the drawer"), messages.image(100), messages.image(200),
        messages.text(250, ""), messages.image(300), messages.text(350, " close it "), messages.image(400)]))
    assert [(frame.index, frame.instruction) for frame in found] == [(1, "open the drawer"), (2, "open the drawer"), (4, "close it")]
    assert tally.images == 5 and tally.without_instruction == 2


def test_a_given_instruction_wins_and_needs_no_topic(write_bag: MakeBag, messages: Any) -> None:
    found, tally = read(write_bag([messages.image(0), messages.text(50, "open the drawer"), messages.image(100)]), instruction="stop it")
    assert [frame.instruction for frame in found] == ["stop it"] * 2 and tally.without_instruction == 0


def test_no_instruction_at_all_is_refused(write_bag: MakeBag, messages: Any) -> None:
    with pytest.raises(BagError, match="Give one with --instruction"):
        read(write_bag([messages.image(0)]))


def test_a_recorded_instruction_is_checked_like_a_live_one(write_bag: MakeBag, messages: Any) -> None:
    with pytest.raises(InstructionError, match="special token"):
        read(write_bag([messages.text(0, "go</s>"), messages.image(1)]))


def test_several_instruction_topics_must_be_chosen_from(write_bag: MakeBag, messages: Any) -> None:
    bag = write_bag([messages.text(0, "left", "/a/instruction"), messages.text(0, "right", "/b/instruction"), messages.image(1)])
    with pytest.raises(BagError, match="--instruction-topic"):
        read(bag)
    assert read(bag, instruction_topic="/b/instruction")[0][0].instruction == "right"


# --- actions


def test_the_first_action_after_a_frame_belongs_to_it(write_bag: MakeBag, messages: Any) -> None:
    found, tally = read(write_bag([
        messages.text(0, "go"), messages.numbers(1, [9] * 7), messages.image(10), messages.numbers(12, [1] * 7),
        messages.numbers(80, [2] * 7), messages.image(100), messages.image(200), messages.numbers(202, [3] * 7),
        messages.image(300), messages.numbers(1301, [4] * 7)]))
    assert [None if frame.recorded is None else frame.recorded[0] for frame in found] == [1.0, None, 3.0, None]
    assert tally.actions == 5 and tally.unmatched_actions == 3


def test_a_twist_is_a_delta_without_gripper(write_bag: MakeBag, messages: Any) -> None:
    found, _ = read(write_bag([messages.text(0, "go"), messages.image(10), messages.twist(12, [1, 2, 3, 4, 5, 6])]))
    np.testing.assert_array_equal(found[0].recorded, [1, 2, 3, 4, 5, 6, np.nan])


def test_seven_numbers_are_preferred_to_a_twist(write_bag: MakeBag, messages: Any) -> None:
    bag = write_bag([messages.text(0, "go"), messages.image(10), messages.twist(12, [1] * 6), messages.numbers(12, [2] * 7)])
    assert read(bag)[0][0].recorded[6] == 2.0
    assert read(bag, action_topic="/teleop/action")[0][0].recorded[0] == 1.0


def test_other_counts_of_numbers_are_refused(write_bag: MakeBag, messages: Any) -> None:
    with pytest.raises(BagError, match="holds 14 numbers, expected 7"):
        read(write_bag([messages.text(0, "go"), messages.image(10), messages.numbers(12, [0] * 14)]))


# --- pictures


def test_stride_and_limit(write_bag: MakeBag, messages: Any) -> None:
    bag = write_bag([messages.text(0, "go"), *(one for k in range(10) for one in (
        messages.image(100 * k + 10, k), messages.numbers(100 * k + 12, [k] * 7)))])
    found, _ = read(bag, stride=3)
    assert [(frame.index, frame.rgb[0, 0, 0], frame.recorded[0]) for frame in found] == [(k, k, k) for k in (0, 3, 6, 9)]
    assert [frame.index for frame in read(bag, limit=4)[0]] == [0, 1, 2, 3]
    assert read(bag, limit=1)[0][0].recorded[0] == 0.0


def test_a_broken_picture_is_a_fault_of_its_frame_only(write_bag: MakeBag, messages: Any) -> None:
    found, tally = read(write_bag([messages.text(0, "go"), messages.image(10), messages.image(20, cut=5), messages.image(30)]))
    assert [bool(frame.fault) for frame in found] == [False, True, False]
    assert found[1].rgb is None and "truncated" in found[1].fault and list(tally.faults.values()) == [1]


def test_a_zero_stamp_is_replaced_by_the_log_time(write_bag: MakeBag, messages: Any) -> None:
    found, _ = read(write_bag([messages.text(0, "go"), messages.image(10, stamped=False)]))
    assert found[0].stamp_ns == found[0].log_ns == messages.t0_ns + 10_000_000


def test_several_cameras_must_be_chosen_from_unless_one_has_the_usual_name(write_bag: MakeBag, messages: Any) -> None:
    start = [messages.text(0, "go"), messages.image(10, 1, "/left/image"), messages.image(10, 2, "/right/image")]
    with pytest.raises(BagError, match=r"/left/image, /right/image.*--image-topic"):
        read(write_bag(start))
    assert read(write_bag(start, "b"), image_topic="right/image")[0][0].rgb[0, 0, 0] == 2
    assert read(write_bag([*start, messages.image(10, 3)], "c"))[0][0].rgb[0, 0, 0] == 3


def test_a_recording_without_pictures_is_refused(write_bag: MakeBag, messages: Any) -> None:
    with pytest.raises(BagError, match="no camera images; it has /instruction"):
        read(write_bag([messages.text(0, "go")]))


def test_a_topic_of_the_wrong_type_is_refused(write_bag: MakeBag, messages: Any) -> None:
    with pytest.raises(BagError, match="is std_msgs/msg/String, expected sensor_msgs/msg/Image"):
        read(write_bag([messages.text(0, "go"), messages.image(10)]), image_topic="/instruction")


# --- ahead, picked, marked


def test_frames_decoded_ahead_are_the_same_in_the_same_order(write_bag: MakeBag, messages: Any) -> None:
    bag = write_bag([messages.text(0, "go"), *(one for k in range(40) for one in (
        messages.image(10 * k + 5, k, cut=3 if k % 7 == 3 else 0), messages.numbers(10 * k + 6, [k] * 7)))])
    with Recording(bag) as recording:
        selection = select(recording)
        plain_tally, tally = Tally(), Tally()
        plain = list(frames(recording, selection, plain_tally, stride=2))
        ahead = list(frames(recording, selection, tally, stride=2, ahead=5, marks=True))
    assert tally == plain_tally and [frame.index for frame in ahead] == list(range(0, 40, 2))
    for one, two in zip(plain, ahead, strict=True):
        assert (one.index, one.stamp_ns, one.fault, one.instruction) == (two.index, two.stamp_ns, two.fault, two.instruction)
        np.testing.assert_array_equal(one.recorded, two.recorded)
        assert (one.rgb is None and two.rgb is None) or np.array_equal(one.rgb, two.rgb)


def test_an_error_and_an_early_end_leave_no_thread_behind(write_bag: MakeBag, messages: Any) -> None:
    bag = write_bag([messages.text(0, "go"), *(messages.image(k + 1, k) for k in range(30)), messages.text(40, "no</s>")])
    with Recording(bag) as recording:
        with pytest.raises(InstructionError):
            list(frames(recording, select(recording), ahead=4, marks=True))
        some = frames(recording, select(recording), ahead=4, marks=True)
        assert next(some).index == 0
        some.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_some_frames_can_be_picked(write_bag: MakeBag, messages: Any) -> None:
    bag = write_bag([messages.text(0, "go"), *(one for k in range(9) for one in (
        messages.image(10 * k + 5, k), messages.numbers(10 * k + 6, [k] * 7)))])
    with Recording(bag) as recording:
        picked = list(pick(recording, select(recording), {7, 2}))
        assert [(frame.index, frame.rgb[0, 0, 0], frame.recorded[0]) for frame in picked] == [(2, 2, 2), (7, 7, 7)]
        assert list(pick(recording, select(recording), {99})) == []


def test_marks_tell_messages_and_pictures_apart(write_bag: MakeBag, messages: Any) -> None:
    bag = write_bag([messages.text(0, "go"), messages.image(10, 1), messages.image(20, 1), messages.image(30, 2),
                     messages.image(40, cut=5)])
    with Recording(bag) as recording:
        found = [frame.marks for frame in frames(recording, select(recording), marks=True)]
    assert len({marks.message for marks in found}) == 4, "stamps differ"
    assert found[0].picture == found[1].picture != found[2].picture and found[3].picture == ""
    assert read(bag)[0][0].marks is None


# --- clocks and definitions


def test_stamps_of_another_clock_are_said(write_bag: MakeBag, messages: Any) -> None:
    def image(at_ms: int, stamp_ns: int) -> Any:
        topic, kind, _, message = messages.image(at_ms)
        message.header.stamp.sec, message.header.stamp.nanosec = stamp_ns // 10**9, stamp_ns % 10**9
        return topic, kind, at_ms, message

    t0 = messages.t0_ns
    mixed, tally = read(write_bag([messages.text(0, "go"), image(10, t0 + 10**7), image(20, 5 * 10**9), image(30, t0 + 3 * 10**7)]))
    assert [frame.index for frame in mixed] == [0, 1, 2] and (tally.stamps_back, tally.other_clock) == (1, 1)
    back, clock = tally.notes
    assert "1 header stamps go back" in back and "different clocks" in clock and "chrony" in clock
    assert read(write_bag([messages.text(0, "go"), image(10, t0 + 10**7), image(20, t0 + 2 * 10**7)], "good"))[1].notes == ()


@pytest.mark.parametrize(("kind", "definition", "values", "word"), [
    ("sensor_msgs/msg/Image", "uint32 height\nuint32 width\nuint8[] pixels\n", (4, 6, np.zeros(72, np.uint8)), "header"),
    ("std_msgs/msg/String", "string text\n", ("go",), "data"),
    ("std_msgs/msg/Float64MultiArray", "float64[] numbers\n", (np.zeros(7),), "data")])
def test_a_changed_definition_that_lacks_what_is_needed_is_named(tmp_path: Path, messages: Any, kind: str, definition: str, values: Any,
                                                                 word: str) -> None:
    store = get_typestore(Stores.EMPTY)
    store.register(get_types_from_msg(definition, kind))
    odd = {"sensor_msgs/msg/Image": "/camera/image_raw", "std_msgs/msg/String": "/instruction"}.get(kind, "/teleop/action7")
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, usual, at_ms, message in (messages.text(0, "go"), messages.image(10), messages.numbers(12, [0] * 7)):
            changed = usual == kind
            channel = writer.add_connection(topic, usual, typestore=store if changed else messages.store)
            message = store.types[kind](*values) if changed else message
            writer.write(channel, messages.t0_ns + at_ms, (store if changed else messages.store).serialize_cdr(message, usual))
    with pytest.raises(BagError, match=rf"{odd} .* recorded with another definition of {kind}.*'{word}'"):
        read(tmp_path / "bag")


# --- real recordings


REAL = {  # images, height, width, actions that found a frame, JPEG
    "bridge_v2_broccoli_640x480": (43, 480, 640, 42, True),
    "bridge_v2_cloth_640x480_db3": (37, 480, 640, 36, True),
    "bridge_v2_pot_640x480_raw": (24, 480, 640, 23, False),
    "bridge_octo_debug_64px": (180, 64, 64, 180, True),
    "rt1_7up_320x256": (54, 256, 320, 53, True),
    "rt1_chipbag_320x256": (29, 256, 320, 28, True),
    "droid_bottle_in_bag_320x192": (80, 192, 320, 80, True),
    "pr2_elevator_button_bayer_raw": (19, 480, 640, 0, False),
    "raspicam_single_frame_1280x960": (1, 960, 1280, 0, True),
    "soccer_robot_camera_2frames_raw": (2, 480, 640, 0, False),
}
CAMERA_ONLY = ("pr2_elevator_button_bayer_raw", "raspicam_single_frame_1280x960", "soccer_robot_camera_2frames_raw")
NO_CAMERA = ("interbotix_wx200_joint_states", "interbotix_wx250_duck_dunk", "interbotix_wx250s_commands")


@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(REAL))
def test_every_real_picture_decodes(shared: Path, name: str) -> None:
    images, height, width, actions, jpeg = REAL[name]
    found, tally = read(shared / "data/bags" / name, instruction="look" if name in CAMERA_ONLY else "")
    assert len(found) == tally.images == images and not tally.faults
    assert {frame.rgb.shape for frame in found} == {(height, width, 3)} and {frame.jpeg for frame in found} == {jpeg}
    assert sum(frame.recorded is not None for frame in found) == actions
    assert all(frame.rgb.std() > 5 for frame in found)  # a picture, not a plain surface


@pytest.mark.shared
def test_the_table_above_names_every_real_recording(shared: Path) -> None:
    assert {path.name for path in (shared / "data/bags").iterdir()} == {*REAL, *NO_CAMERA}
    for name in NO_CAMERA:
        with pytest.raises(BagError, match="no camera images"):
            read(shared / "data/bags" / name, instruction="look")


@pytest.mark.shared
def test_the_second_camera_of_droid_can_be_chosen(shared: Path) -> None:
    bag = shared / "data/bags/droid_bottle_in_bag_320x192"
    outside, wrist = read(bag, limit=1)[0][0], read(bag, limit=1, image_topic="/camera/wrist/image_raw/compressed")[0][0]
    assert not np.array_equal(outside.rgb, wrist.rgb)


@pytest.mark.shared
def test_octo_frames_equal_the_arrays_beside_them(shared: Path) -> None:
    """The same 18 episodes as arrays, made apart from the recording: pictures, actions and instructions agree."""
    arrays = np.load(shared / "data/bridge_octo_debug_64px.npz")
    found, _ = read(shared / "data/bags/bridge_octo_debug_64px")
    difference = np.abs(np.stack([frame.rgb for frame in found]).astype(int) - arrays["images"].reshape(180, 64, 64, 3))
    assert difference.max() <= 3  # two JPEG decoders
    np.testing.assert_allclose([frame.recorded for frame in found], arrays["action7"].reshape(180, 7), atol=1e-6)
    assert [frame.instruction for frame in found] == [str(text).strip() for text in np.repeat(arrays["instruction"], 10)]


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bridge_v2_broccoli_640x480", "bridge_v2_cloth_640x480_db3", "bridge_v2_pot_640x480_raw"])
def test_bridge_actions_are_the_differences_of_the_recorded_states(shared: Path, name: str) -> None:
    folder = shared / "data/bags" / name
    episode = json.loads((folder / "episode.json").read_text())
    found, _ = read(folder)
    states = np.array(episode["ee_xyz_rpy"])
    assert found[0].instruction == episode["instruction"]
    np.testing.assert_allclose([frame.recorded[:6] for frame in found[:-1]], np.diff(states, axis=0), atol=5e-6)


@pytest.mark.shared
def test_native_stamps_are_older_than_their_log_times(shared: Path) -> None:
    found, _ = read(shared / "data/bags/pr2_elevator_button_bayer_raw", instruction="look")
    delays_ms = [(frame.log_ns - frame.stamp_ns) / 1e6 for frame in found]
    assert min(delays_ms) > 30 and max(delays_ms) < 60
