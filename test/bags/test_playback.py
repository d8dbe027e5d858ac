"""What may be heard of a recording, and when."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.bags.playback import Event, Timeline, choose, is_sensing, left_out, sensing_names
from openvla_ros.bags.read import Quality, Raw, Recording, Topic
from openvla_ros.errors import BagError, ConfigurationError

S, MS = 1_000_000_000, 1_000_000
START = 1_700_000_000 * S
IMAGE, STRING = "sensor_msgs/msg/Image", "std_msgs/msg/String"


def topic(name: str, kind: str = IMAGE, count: int = 3, quality: Quality | None = None) -> Topic:
    return Topic(name, kind, count, quality)


# --- what moves an arm is never heard by accident


@pytest.mark.parametrize(("name", "kind"), [
    ("/camera/image_raw", IMAGE), ("/wrist/image_raw/compressed", "sensor_msgs/msg/CompressedImage"),
    ("/camera/camera_info", "sensor_msgs/msg/CameraInfo"), ("/joint_states", "sensor_msgs/msg/JointState"),
    ("/wx250s/joint_states", "sensor_msgs/msg/JointState"), ("/instruction", STRING), ("/left/robot_description", STRING),
    ("/state/ee_pose", "geometry_msgs/msg/PoseStamped"), ("/state/gripper", "std_msgs/msg/Float64"), ("/tf", "tf2_msgs/msg/TFMessage"),
    ("/tf_static", "tf2_msgs/msg/TFMessage")])
def test_sensing_topics(name: str, kind: str) -> None:
    assert is_sensing(name, kind)


@pytest.mark.parametrize(("name", "kind"), [
    ("/wx250s/commands/joint_group", "interbotix_xs_msgs/msg/JointGroupCommand"), ("/wx250s/commands/joint_single", "x_msgs/msg/Y"),
    ("/arm_controller/joint_trajectory", "trajectory_msgs/msg/JointTrajectory"), ("/cmd_vel", "geometry_msgs/msg/Twist"),
    ("/servo_node/delta_twist_cmds", "geometry_msgs/msg/TwistStamped"), ("/servo_node/pose_target_cmds", "geometry_msgs/msg/PoseStamped"),
    ("/action_chunk", "openvla_msgs/msg/ActionChunk"), ("/driver", STRING), ("/driver", "std_msgs/msg/UInt8"),
    ("/teleop/action", "geometry_msgs/msg/TwistStamped"), ("/teleop/action7", "std_msgs/msg/Float64MultiArray"),
    ("/teleop/gripper", "std_msgs/msg/Float64"), ("/joy", "sensor_msgs/msg/Joy"), ("/enable", "std_msgs/msg/Bool"),
    ("/emergency_stop_request", "std_msgs/msg/Bool"), ("/command_report", "openvla_msgs/msg/CommandReport"),
    ("/isaac/joint_command", "sensor_msgs/msg/JointState"), ("/commanded_joint_states", "sensor_msgs/msg/JointState"),
    ("/teleop/state/pose", "geometry_msgs/msg/PoseStamped"), ("/state/target", "geometry_msgs/msg/PoseStamped"),
    ("/goal_pose", "geometry_msgs/msg/PoseStamped"), ("/gripper", "std_msgs/msg/Float64"), ("/script", STRING),
    ("/view_target", "geometry_msgs/msg/PointStamped"), ("/anything", "unknown_msgs/msg/Thing"), ("/commands/picture", IMAGE),
    ("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray"), ("/parameter_events", "rcl_interfaces/msg/ParameterEvent")])
def test_commanding_and_unknown_topics_are_not_sensing(name: str, kind: str) -> None:
    assert not is_sensing(name, kind)


def test_only_sensing_topics_are_chosen_by_default_and_the_rest_is_listed() -> None:
    topics = [topic("/camera/image_raw"), topic("/teleop/action7", "std_msgs/msg/Float64MultiArray"), topic("/empty/image", count=0),
              topic("/clock", "rosgraph_msgs/msg/Clock")]
    parts = choose(topics)
    assert [(part.heard_as, part.commanding) for part in parts] == [("/camera/image_raw", False)]
    assert [one.name for one in left_out(topics, parts)] == ["/teleop/action7", "/clock"]


def test_another_player_is_given_the_names_of_sensing_topics_alone() -> None:
    found = (topic("/camera/image_raw"), topic("/wx250s/commands/joint_group", "x_msgs/msg/Y"), topic("/instruction", STRING),
             topic("/teleop/action", "geometry_msgs/msg/TwistStamped"), topic("/empty/image_raw", count=0))
    assert sensing_names(found) == ("/camera/image_raw", "/instruction")


def test_commanding_topics_need_a_name_and_are_heard_under_replay() -> None:
    topics = [topic("/camera/image_raw"), topic("/teleop/action", "geometry_msgs/msg/TwistStamped")]
    parts = choose(topics, named=["teleop/action", "/camera/image_raw"])
    assert {part.topic.name: (part.heard_as, part.commanding) for part in parts} == {
        "/camera/image_raw": ("/camera/image_raw", False), "/teleop/action": ("/replay/teleop/action", True)}


@pytest.mark.parametrize("target", ["/teleop/action", "/wx250s/commands/x", "/replaying/x"])
def test_no_remap_brings_a_commanding_topic_out_of_replay(target: str) -> None:
    parts = choose([topic("/teleop/action", "geometry_msgs/msg/TwistStamped")], ["/teleop/action"], {"/teleop/action": target})
    assert parts[0].heard_as == "/replay" + target


@pytest.mark.parametrize(("old", "kind", "new"), [
    ("/state/ee_pose", "geometry_msgs/msg/PoseStamped", "/servo_node/pose_target_cmds"), ("/instruction", STRING, "/driver"),
    ("/joint_states", "sensor_msgs/msg/JointState", "/isaac/joint_command"), ("/state/gripper", "std_msgs/msg/Float64", "/gripper")])
def test_no_remap_turns_a_sensing_topic_into_a_command(old: str, kind: str, new: str) -> None:
    with pytest.raises(ConfigurationError, match="would turn a recording into a command"):
        choose([topic(old, kind)], remaps={old: new})


def test_remaps_rename_pictures() -> None:
    assert choose([topic("/camera/image_raw")], remaps={"camera/image_raw": "image"})[0].heard_as == "/image"


def test_two_topics_may_not_share_a_name() -> None:
    with pytest.raises(ConfigurationError, match="two recorded topics would be heard as /image"):
        choose([topic("/a/image"), topic("/b/image")], remaps={"/a/image": "/image", "/b/image": "/image"})


def test_unknown_names_and_nothing_to_play_are_refused() -> None:
    with pytest.raises(BagError, match=r"no topic /nowhere; it has /camera/image_raw"):
        choose([topic("/camera/image_raw")], ["/nowhere"])
    with pytest.raises(BagError, match="no topic /nowhere"):
        choose([topic("/camera/image_raw")], remaps={"/nowhere": "/image"})
    with pytest.raises(BagError, match="nothing to play"):
        choose([topic("/teleop/action", "geometry_msgs/msg/TwistStamped")])
    with pytest.raises(ConfigurationError, match="is not a topic name"):
        choose([topic("/camera/image_raw")], ["/camera/*"])


def test_quality_is_as_recorded_and_sensible_where_the_recording_is_silent() -> None:
    recorded = Quality(reliable=False, latched=False, depth=3)
    parts = choose([topic("/a/image", quality=recorded), topic("/b/image"), topic("/instruction", STRING)])
    assert [part.quality for part in parts] == [recorded, Quality(True, False, 10), Quality(True, True, 10)]


@pytest.mark.shared
def test_what_is_heard_of_every_real_recording(shared: Path) -> None:
    heard = {}
    for path in sorted((shared / "data/bags").iterdir()):
        with Recording(path) as recording:
            try:
                heard[path.name] = {part.topic.name for part in choose(recording.topics)}
            except BagError:
                heard[path.name] = set()
    bridge = {"/camera/image_raw/compressed", "/instruction", "/state/ee_pose", "/state/gripper"}
    assert heard == {
        **dict.fromkeys(("bridge_octo_debug_64px", "bridge_v2_broccoli_640x480", "bridge_v2_cloth_640x480_db3", "rt1_7up_320x256",
                         "rt1_chipbag_320x256"), bridge),
        "bridge_v2_pot_640x480_raw": {"/camera/image_raw", "/instruction", "/state/ee_pose", "/state/gripper"},
        "droid_bottle_in_bag_320x192": {"/camera/image_raw/compressed", "/camera/wrist/image_raw/compressed", "/instruction",
                                        "/joint_states", "/state/ee_pose"},
        "interbotix_wx200_joint_states": {"/wx200/joint_states"},
        "interbotix_wx250_duck_dunk": set(), "interbotix_wx250s_commands": set(),
        "pr2_elevator_button_bayer_raw": {"/wide_stereo/left/camera_info", "/wide_stereo/left/image_raw"},
        "raspicam_single_frame_1280x960": {"/raspicam_node/camera_info", "/raspicam_node/image/compressed"},
        "soccer_robot_camera_2frames_raw": {"/camera/image_raw"}}


# --- time


def timeline(offsets_ms: list[int], **options: float | bool) -> Timeline:
    """Messages at these times after START; the recording ends with the last one."""
    raws = [Raw(topic("/camera/image_raw"), START + offset * MS, b"") for offset in offsets_ms]

    def open_messages() -> Iterator[Raw]:
        return iter(raws)

    return Timeline(open_messages, START, START + max(offsets_ms) * MS, **options)  # type: ignore[arg-type]


def play(line: Timeline, until_ns: int, late_ns: int = 0) -> list[tuple[int, Event]]:
    """What a player does that wakes `late_ns` too late each time: wall time and event."""
    line.begin(0)
    wall_ns, found = 0, list[tuple[int, Event]]()
    while not line.finished and wall_ns <= until_ns:
        wall_ns = max(wall_ns, line.next_wall_ns()) + late_ns
        found += [(wall_ns, event) for event in line.due(wall_ns)]
    return found


def test_messages_come_at_their_time_and_the_clock_ticks_between_and_after() -> None:
    found = play(timeline([0, 200, 400], clock_hz=100, linger_s=1.0), 10 * S)
    assert [wall_ns for wall_ns, event in found if event.raw] == [0, 200 * MS, 400 * MS]
    clocks = [event.clock_ns for _, event in found]
    assert clocks == sorted(clocks) and clocks[0] == START and clocks[-1] == START + 1400 * MS
    assert max(later - earlier for earlier, later in pairwise(clocks)) == 10 * MS
    assert all(event.clock_ns == START + wall_ns for wall_ns, event in found)


def test_rate_is_the_speed_of_time_and_the_clock_keeps_its_wall_rate() -> None:
    found = play(timeline([0, 200, 400], rate=4.0, clock_hz=50, linger_s=1.0), 10 * S)
    assert [wall_ns for wall_ns, event in found if event.raw] == [0, 50 * MS, 100 * MS]
    ticks = [wall_ns for wall_ns, event in found if not event.raw]
    assert {later - earlier for earlier, later in pairwise(ticks)} == {20 * MS}
    assert found[-1][1].clock_ns == START + 4400 * MS


def test_the_clock_is_given_before_each_message() -> None:
    for _, event in play(timeline([3, 7, 11, 333]), 10 * S):
        assert event.raw is None or event.clock_ns == event.raw.log_ns


def test_a_loop_turns_the_clock_back_and_says_every_message_again() -> None:
    line = timeline([0, 100], loop=True)
    found = play(line, 1 * S)
    assert line.rounds >= 5 and not line.finished
    first = [index for index, (_, event) in enumerate(found) if event.raw and event.raw.log_ns == START]
    assert len(first) >= 5
    clocks = [event.clock_ns for _, event in found]
    backwards = sum(later < earlier for earlier, later in pairwise(clocks))
    assert backwards == line.rounds  # and never within a round


def test_a_player_that_oversleeps_catches_up_without_a_storm_of_ticks() -> None:
    line = timeline([0, 100, 200, 300, 400], clock_hz=1000, linger_s=0.0)
    line.begin(0)
    found = list(line.due(350 * MS))
    assert [event.clock_ns - START for event in found] == [0, 100 * MS, 200 * MS, 300 * MS, 350 * MS]


@settings(max_examples=200, deadline=None)
@given(offsets=st.lists(st.integers(0, 2_000), min_size=1, max_size=20).map(sorted), rate=st.sampled_from([0.1, 0.3, 1.0, 7.0, 100.0]),
       clock_hz=st.sampled_from([40.0, 99.0, 1000.0]), late_ms=st.integers(0, 50))
def test_any_recording_is_played_whole_in_order_never_early_and_time_never_goes_back(
        offsets: list[int], rate: float, clock_hz: float, late_ms: int) -> None:
    found = play(timeline(offsets, rate=rate, clock_hz=clock_hz, linger_s=0.2), 10**15, late_ms * MS)
    assert [event.raw.log_ns for _, event in found if event.raw] == [START + offset * MS for offset in offsets]
    clocks = [event.clock_ns for _, event in found]
    assert clocks == sorted(clocks)
    for wall_ns, event in found:
        if event.raw:
            assert wall_ns >= (event.raw.log_ns - START) / rate - 1


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": -1.0}, {"rate": float("nan")}, {"clock_hz": 10.0}, {"linger_s": -1.0}])
def test_options_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        timeline([0], **wrong)
