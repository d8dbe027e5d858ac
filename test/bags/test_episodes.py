"""Recordings become episodes: every message is a row or is listed with the reason, and what is on disk is whole or says that it is not."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PosixPath
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.bags.episodes import DATASET, LEFT_OUT, PART, STATISTICS, Dataset, Row, read, verify
from openvla_ros.bags.harvest import DatasetSummary, EpisodeRules, write_dataset
from openvla_ros.bags.read import Recording
from openvla_ros.bags.steps import Ledger, Step, StepSettings, steps
from openvla_ros.errors import BagError, ConfigurationError
from openvla_ros.policy.catalogue import PolicySettings, load_policy
from openvla_ros.policy.statistics import check_statistics
from openvla_ros.regression.job import Job, run_job
from openvla_ros.regression.pages import page_of

T0_NS = 1_700_000_000 * 10**9
MakeBag = Callable[..., Path]
HOLD, POLICY, HUMAN, STOPPED = range(4)


class Robot:
    """Messages of a running robot, as (topic, type, milliseconds after T0, message)."""

    def __init__(self, checkout: Path) -> None:
        self.store = get_typestore(Stores.ROS2_JAZZY)
        for name in ("EndEffectorDelta", "ActionChunk", "CommandReport"):
            text = (checkout / f"msg/openvla_msgs/msg/{name}.msg").read_text(encoding="utf-8")
            self.store.register(get_types_from_msg(text, f"openvla_msgs/msg/{name}"))

    def make(self, kind: str, *values: Any, **named: Any) -> Any:
        package, name = kind.split("/")
        return self.store.types[f"{package}/msg/{name}"](*values, **named)

    def stamp(self, at_ms: float) -> Any:
        stamp_ns = T0_NS + round(at_ms * 1e6)
        return self.make("builtin_interfaces/Time", stamp_ns // 10**9, stamp_ns % 10**9)

    def header(self, at_ms: float) -> Any:
        return self.make("std_msgs/Header", self.stamp(at_ms), "base")

    def delta(self, numbers: Sequence[float]) -> Any:
        vector = [self.make("geometry_msgs/Vector3", *map(float, numbers[part:part + 3])) for part in (0, 3)]
        return self.make("openvla_msgs/EndEffectorDelta", *vector, float(numbers[6]))

    def image(self, at_ms: float, seen_ms: float | None = None, value: int = 0, broken: bool = False) -> tuple[Any, ...]:
        file = cv2.imencode(".jpg", np.full((48, 64, 3), value % 256, np.uint8))[1].reshape(-1)
        message = self.make("sensor_msgs/CompressedImage", self.header(at_ms if seen_ms is None else seen_ms), "jpeg",
                            file[:40] if broken else file)
        return "/camera/image_raw/compressed", "sensor_msgs/msg/CompressedImage", at_ms, message

    def raw_image(self, at_ms: float, pixels: np.ndarray) -> tuple[Any, ...]:
        message = self.make("sensor_msgs/Image", self.header(at_ms), *pixels.shape[:2], "rgb8", 0, 3 * pixels.shape[1], pixels.reshape(-1))
        return "/camera/image_raw", "sensor_msgs/msg/Image", at_ms, message

    def text(self, at_ms: float, text: str) -> tuple[Any, ...]:
        return "/instruction", "std_msgs/msg/String", at_ms, self.make("std_msgs/String", text)

    def action(self, at_ms: float, numbers: Sequence[float]) -> tuple[Any, ...]:
        layout = self.make("std_msgs/MultiArrayLayout", [], 0)
        return ("/teleop/action7", "std_msgs/msg/Float64MultiArray", at_ms,
                self.make("std_msgs/Float64MultiArray", layout, np.array(numbers, np.float64)))

    def mark(self, at_ms: float, success: bool) -> tuple[Any, ...]:
        return "/episode/success", "std_msgs/msg/Bool", at_ms, self.make("std_msgs/Bool", success)

    def chunk(self, at_ms: float, seen_ms: float, sequence: int, wishes: Sequence[Sequence[float]], instruction: str) -> tuple[Any, ...]:
        message = self.make("openvla_msgs/ActionChunk", self.header(seen_ms), 7, 1, sequence,
                            self.make("builtin_interfaces/Duration", 0, 200_000_000), [self.delta(wish) for wish in wishes], instruction,
                            "tiny", np.array([1], np.int64), "", [], np.array([], np.float32))
        return "/action_chunk", "openvla_msgs/msg/ActionChunk", at_ms, message

    def report(self, at_ms: float, driver: int, sent: Sequence[float] = (0,) * 7, seen_ms: float | None = None, sequence: int | None = None,
               **changes: Any) -> tuple[Any, ...]:
        """seen_ms: when the picture was seen that a step of the policy starts from; None: no step of the policy starts."""
        pose = self.make("geometry_msgs/Pose", self.make("geometry_msgs/Point", 0.3, 0.0, 0.1),
                         self.make("geometry_msgs/Quaternion", 0.0, 0.0, 0.0, 1.0))
        begun = seen_ms is not None
        values: dict[str, Any] = {
            "header": self.header(at_ms), "driver": driver, "step_started": begun, "session": 7 * begun, "generation": int(begun),
            "sequence": int(seen_ms or 0) if sequence is None else sequence,
            "observation_stamp": self.stamp(seen_ms) if begun else self.make("builtin_interfaces/Time", 0, 0),
            "requested": self.delta(2 * np.asarray(sent)), "sent": self.delta(sent), "target_pose": pose, "target_pose_valid": False,
            "measured_pose": pose, "measured_pose_valid": True, "rules": [], "stop_reason": "", "proposal": self.delta((0,) * 7),
            "proposal_valid": False, "intervention": False, "action_scale": 1.0, "dry_run": False, **changes}
        return "/command_report", "openvla_msgs/msg/CommandReport", at_ms, self.make("openvla_msgs/CommandReport", **values)


@pytest.fixture(scope="module")
def robot(checkout: Path) -> Robot:
    return Robot(checkout)


@pytest.fixture
def record(tmp_path: Path, robot: Robot) -> MakeBag:
    """record(messages, name="day") -> the folder of a recording of them, in order of their time."""

    def write(messages: Sequence[tuple[Any, ...]], name: str = "day") -> Path:
        with Writer(tmp_path / name, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            channels: dict[str, Any] = {}
            for topic, kind, at_ms, message in sorted(messages, key=lambda entry: entry[2]):
                if topic not in channels:
                    channels[topic] = writer.add_connection(topic, kind, typestore=robot.store)
                writer.write(channels[topic], T0_NS + round(at_ms * 1e6), robot.store.serialize_cdr(message, kind))
        return tmp_path / name

    return write


def wish(value: float, gripper: float = 1.0) -> list[float]:
    return [value, 0, 0, 0, 0, 0, gripper]


def found_in(bag: Path, **settings: Any) -> tuple[list[Step], dict[str, int]]:
    """Its steps, and how much was left out for each reason."""
    ledger = Ledger()
    with Recording(bag) as recording:
        found = [step for step in steps(recording, StepSettings(**settings), ledger) if isinstance(step, Step)]
    return found, {f"{entry.kind}: {entry.reason}": entry.count for entry in ledger.entries()}


def dataset(bags: Sequence[Path], folder: Path, rules: EpisodeRules | None = None, **settings: Any) -> tuple[DatasetSummary, Dataset]:
    summary = write_dataset(bags, folder, StepSettings(**settings), rules or EpisodeRules())
    return summary, Dataset(folder)


def teleop_day(robot: Robot, count: int = 6, start_ms: float = 0.0, instruction: str = "go") -> list[tuple[Any, ...]]:
    return [robot.text(start_ms, instruction), *(one for k in range(count) for one in (
        robot.image(start_ms + 200 * k + 10, value=k), robot.action(start_ms + 200 * k + 12, wish(k / 100))))]


# ---------------------------------------------------------------------- the real recordings


@pytest.mark.shared
def test_real_recordings_of_three_data_sets(shared: Path, tmp_path: Path) -> None:
    bags = [shared / "data/bags" / name for name in ("bridge_octo_debug_64px", "bridge_v2_cloth_640x480_db3", "bridge_v2_pot_640x480_raw",
                                                     "droid_bottle_in_bag_320x192", "rt1_chipbag_320x256", "interbotix_wx250s_commands")]
    summary, found = dataset(bags, tmp_path / "set")
    assert [(part.episodes, part.rows) for part in summary.parts] == [(18, 180), (1, 36), (1, 23), (1, 80), (1, 28)]
    assert list(summary.failed) == [str(bags[-1])] and "no camera images" in summary.failed[str(bags[-1])]
    truth = np.load(shared / "data/bridge_octo_debug_64px.npz")
    octo = [row for row in found if row.episode.recording == "bridge_octo_debug_64px"]
    assert np.array_equal([row.action for row in octo], truth["action7"].reshape(-1, 7))
    away = np.array([row.picture() for row in octo], int) - truth["images"].reshape(-1, 64, 64, 3)
    assert np.abs(away).max() <= 2  # another JPEG decoder
    assert [episode.instruction for episode in found.episodes[:18]] == [str(text) for text in truth["instruction"]]
    reasons = {part.recording: [(entry.kind, entry.count) for entry in part.left_out] for part in summary.parts}
    assert reasons["bridge_octo_debug_64px"] == [] and reasons["bridge_v2_cloth_640x480_db3"] == [("picture", 1)]
    assert reasons["droid_bottle_in_bag_320x192"] == [("action", 159)]  # 15 actions a second, 5 pictures
    assert octo[3].position_m is not None and octo[3].proposal is None and octo[3].driver == ""


@pytest.mark.shared
def test_pictures_are_the_recorded_bytes(shared: Path, tmp_path: Path) -> None:
    bag = shared / "data/bags/rt1_chipbag_320x256"
    _, found = dataset([bag], tmp_path / "set")
    with Recording(bag) as recording:
        files = [bytes(recording.decode(raw).data) for raw in recording.messages([recording.topic("/camera/image_raw/compressed")])]
    assert [row.file for row in found] == files[:-1]


@pytest.mark.shared
def test_statistics_are_those_of_openvla(shared: Path, tmp_path: Path) -> None:
    dataset([shared / "data/bags/bridge_octo_debug_64px"], tmp_path / "octo")
    content = json.loads((tmp_path / "octo" / STATISTICS).read_text(encoding="utf-8"))
    published = json.loads((shared / "data/openvla_7b_norm_stats.json").read_text(encoding="utf-8"))["bridge_orig"]
    assert content["octo"].keys() == published.keys() and content["octo"]["action"].keys() == published["action"].keys()
    actions = np.load(shared / "data/bridge_octo_debug_64px.npz")["action7"].reshape(-1, 7).astype(np.float32)
    expected = {"q01": np.quantile(actions, 0.01, axis=0), "q99": np.quantile(actions, 0.99, axis=0), "mean": actions.mean(axis=0),
                "std": actions.std(axis=0), "min": actions.min(axis=0), "max": actions.max(axis=0)}
    for name, values in expected.items():
        assert np.allclose(content["octo"]["action"][name], values, rtol=1e-6, atol=1e-9), name
    assert content["octo"]["action"]["mask"] == published["action"]["mask"]
    assert content["octo"]["num_transitions"] == 180 and content["octo"]["num_trajectories"] == 18
    assert check_statistics("octo", content["octo"]).length == 7


# ---------------------------------------------------------------------- what belongs together


def test_a_policy_step_belongs_to_the_picture_it_was_computed_from(robot: Robot, record: MakeBag) -> None:
    day = [robot.text(0, "go"), robot.report(5, POLICY), *(robot.image(33 * k + 10, value=k) for k in range(40)),
           *(robot.chunk(33 * k + 130, 33 * k + 10, k, [wish(0.05)], "go") for k in (0, 6, 12)),
           *(robot.report(33 * k + 140, POLICY, wish(k / 100), seen_ms=33 * k + 10, sequence=k) for k in (0, 6, 12))]
    found, left = found_in(record(day))
    assert [step.frame_index for step in found] == [0, 6, 12] and [step.action[0] for step in found] == [0.0, 0.06, 0.12]
    assert [step.proposal[0] for step in found] == [0.05] * 3  # of the chunk, before the rules
    assert all(step.driver == "POLICY" and step.position_m[0] == 0.3 for step in found)
    assert left == {"picture: no step began with it": 37}


def test_the_steps_of_one_chunk_belong_to_pictures_of_equal_age(robot: Robot, record: MakeBag) -> None:
    day = [robot.report(5, POLICY), *(robot.image(100 * k, value=k) for k in range(12)),
           robot.chunk(120, 0, 1, [wish(0.01), wish(0.02), wish(0.03)], "from a goal"),
           *(robot.report(150 + 200 * k, POLICY, wish(0.001), seen_ms=0, sequence=1) for k in range(3))]
    found, _ = found_in(record(day))  # there is no instruction topic at all
    assert [(step.frame_index, step.proposal[0], step.instruction) for step in found] == [
        (0, 0.01, "from a goal"), (2, 0.02, "from a goal"), (4, 0.03, "from a goal")]


@pytest.mark.parametrize(("camera_ms", "robot_ms"), [(0, 0), (-10_000_000, 0), (-10_000_000, -10_000_000)],
                         ids=["one clock", "the camera has another", "simulated time"])
def test_a_human_step_belongs_to_the_picture_before_it_began(robot: Robot, record: MakeBag, camera_ms: int, robot_ms: int) -> None:
    day = [robot.text(0, "go"), robot.report(1, HUMAN), *(robot.image(at, seen_ms=at + camera_ms) for at in range(10, 1210, 100)),
           *(robot.report(430 + 200 * k, HUMAN, wish(0.01), intervention=True, proposal=robot.delta(wish(0.3)), proposal_valid=k > 0,
                          header=robot.header(430 + 200 * k + robot_ms)) for k in range(3)), robot.report(1100, HUMAN)]
    found, _ = found_in(record(day))
    assert [step.frame_index for step in found] == [2, 4, 6]  # began at 230, 430, 630 ms
    assert all(step.driver == "HUMAN" and step.intervention for step in found)
    assert np.isnan(found[0].proposal).all() and found[1].proposal[0] == 0.3


def test_what_was_not_done_or_cannot_be_learnt_is_listed(robot: Robot, record: MakeBag) -> None:
    def act(at_ms: float, seen_ms: float, value: float = 0.1, **changes: Any) -> tuple[Any, ...]:
        return robot.report(at_ms, POLICY, wish(value), seen_ms=seen_ms, **changes)

    day = [robot.image(0), robot.report(10, HOLD), robot.image(100), robot.text(150, "go"), robot.report(190, POLICY),
           robot.image(200), act(210, 200, dry_run=True), robot.image(400), act(410, 400, np.nan), robot.image(600, broken=True),
           act(610, 600), act(620, 500), robot.image(800), act(810, 800), act(1010, 800, sequence=1), robot.text(1050, "do <s> it"),
           robot.image(1100), act(1210, 1100)]
    found, left = found_in(record(day))
    assert [step.frame_index for step in found] == [5]
    broken = next(reason for reason in left if reason.startswith("picture: it cannot be shown: "))
    token = next(reason for reason in left if "spells the special token" in reason and reason.startswith("report"))
    assert left == {
        "picture: no instruction yet": 2, "picture: no step began with it": 2, broken: 1, token.replace("report", "picture"): 1, token: 1,
        "report: a dry run: nothing was sent": 1, "report: no finite dx": 1, "report: its picture cannot be shown": 1,
        "report: no recorded picture has the stamp that the step was computed from": 1,
        "report: its picture began a step already: actions come faster than pictures": 1}


@pytest.mark.parametrize("ending", ["stop", "takeover", "fresher chunk", "nothing new", "in time"])
def test_a_step_that_was_cut_short_is_no_example(robot: Robot, record: MakeBag, ending: str) -> None:
    after = {"stop": robot.report(120, POLICY, stop_reason="the chunk is empty"), "takeover": robot.report(120, HUMAN),
             "fresher chunk": robot.report(120, POLICY, wish(0.2), seen_ms=100), "nothing new": robot.report(120, POLICY),
             "in time": robot.report(250, HOLD, stop_reason="HOLD was chosen")}[ending]
    day = [robot.text(0, "go"), robot.image(10), robot.report(50, POLICY, wish(0.1), seen_ms=10), robot.image(100), after,
           robot.report(500, POLICY)]
    found, left = found_in(record(day))
    whole = {"fresher chunk": [1], "nothing new": [0], "in time": [0]}.get(ending, [])
    assert [step.frame_index for step in found] == whole
    assert sum(count for reason, count in left.items() if "was cut short" in reason) == (0 if 0 in whole else 2)


def test_stamps_of_receipt_are_found_by_the_log_time(robot: Robot, record: MakeBag) -> None:
    day = [robot.text(0, "go"), *(robot.image(200 * k + 10, seen_ms=200 * k - 50_000) for k in range(5)),
           *(robot.report(200 * k + 100, POLICY, wish(0.01), seen_ms=200 * k + 12) for k in range(5))]
    assert [step.frame_index for step in found_in(record(day))[0]] == [0, 1, 2, 3, 4]


def test_recorded_actions_can_be_asked_for_where_there_are_reports(robot: Robot, record: MakeBag) -> None:
    bag = record([*teleop_day(robot), robot.report(1, HOLD)])
    assert found_in(bag)[0] == [] and len(found_in(bag, source="recorded")[0]) == 6


@pytest.mark.parametrize("seed", range(6))
def test_every_message_is_a_step_or_is_listed(robot: Robot, record: MakeBag, seed: int) -> None:
    random = np.random.default_rng(seed)
    times = np.cumsum(random.choice([5, 40, 200, 1500], 120, p=[0.4, 0.4, 0.18, 0.02]))
    day = []
    for at in map(float, times):
        kind, chance = random.choice(["image", "report", "text", "human"], p=[0.5, 0.35, 0.05, 0.1]), random.random()
        seen = float(random.choice(times)) if chance < 0.3 else float(times[max(0, int(np.searchsorted(times, at)) - 2)])
        if kind == "image":
            day.append(robot.image(at, broken=chance < 0.1))
        elif kind == "report":
            day.append(robot.report(at, POLICY, wish(0.1), seen_ms=seen, sequence=int(random.integers(9))))
        elif kind == "text":
            day.append(robot.text(at, str(random.choice(["a", "b", "", "<s>"]))))
        else:
            day.append(robot.report(at, HUMAN, wish(0.1), dry_run=chance < 0.2))
    found, left = found_in(record([robot.text(-1, "begin"), robot.image(-0.5), *day]))
    count = {topic: sum(entry[0].endswith(topic) for entry in day) for topic in ("compressed", "report")}
    listed = {kind: sum(number for reason, number in left.items() if reason.startswith(kind)) for kind in ("picture", "report")}
    assert len(found) + listed["picture"] == count["compressed"] + 1
    assert len(found) + listed["report"] == count["report"]
    assert len({step.frame_index for step in found}) == len(found) > 0


def test_a_recording_without_any_action_says_what_to_record(robot: Robot, record: MakeBag) -> None:
    with pytest.raises(BagError, match=r"neither command reports nor recorded actions.*Record command_report too"):
        found_in(record([robot.text(0, "go"), robot.image(1)]))


def test_the_page_of_a_replay_shows_what_was_sent_on_that_day(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    bag = record([robot.text(0, "go"), *(robot.image(100 * k + 10) for k in range(8)),
                  *(robot.report(200 * k + 50, POLICY, wish(k / 100), seen_ms=200 * k + 10) for k in range(3))])
    job = Job("day", bag, PolicySettings("scripted"), tmp_path)
    shown = page_of([job], [run_job(job, load_policy(job.policy))]).tracks[0].frames
    assert {frame.index: frame.recorded[0] for frame in shown if frame.recorded is not None} == {0: 0.0, 2: 0.01, 4: 0.02}
    assert [frame.driver for frame in shown[:3]] == ["POLICY", "", "POLICY"]


# ---------------------------------------------------------------------- where episodes end


def test_episodes_end_at_instructions_drivers_gaps_and_marks(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    day, at = [robot.text(0, "one"), robot.report(1, POLICY)], 100.0

    def drive(count: int, driver: int = POLICY) -> Iterator[tuple[Any, ...]]:
        nonlocal at
        for _ in range(count):
            yield robot.image(at)
            seen = at if driver == POLICY else None
            yield robot.report(at + (20 if driver == POLICY else 210), driver, wish(0.01), seen_ms=seen, sequence=int(at))
            at += 200

    day += drive(3)
    day += [robot.text(at - 1, "two"), *drive(4)]
    day += [*drive(3, HUMAN), robot.report(at + 50, HOLD)]
    at += 2000
    day += [*drive(5), robot.mark(at - 90, True), *drive(2), robot.report(at + 50, HOLD), robot.mark(at + 100, False)]
    at += 3000
    day += drive(1)
    summary, found = dataset([record(day)], tmp_path / "set")
    assert [(episode.instruction, episode.driver, episode.rows, episode.success) for episode in found.episodes] == [
        ("one", "POLICY", 3, None), ("two", "POLICY", 4, None), ("two", "HUMAN", 3, None), ("two", "POLICY", 5, True),
        ("two", "POLICY", 2, False)]
    short = [entry for entry in summary.parts[0].left_out if "fewer than 2 steps" in entry.reason]
    assert len(short) == 1 and short[0].ranges == ((17, 17),)
    part = tmp_path / "set" / summary.parts[0].folder
    assert (part / "frames-00000.bin").stat().st_size == sum(len(row.file) for row in found)  # taken back from the disk too


def test_marks_that_are_given_yield_to_those_recorded(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    day = [*teleop_day(robot), robot.mark(1300, True), *teleop_day(robot, start_ms=5000)]
    _, found = dataset([record(day)], tmp_path / "set", EpisodeRules(success=False))
    assert [episode.success for episode in found.episodes] == [True, False]


def test_raw_pictures_can_be_kept_exactly(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    bag = record([robot.text(0, "go"), *(one for k in range(3) for one in (
        robot.raw_image(200 * k + 10, pixels), robot.action(200 * k + 12, wish(0.01))))])
    _, exact = dataset([bag], tmp_path / "png", raw_as="png")
    assert np.array_equal(exact[0].picture(), pixels)
    _, lossy = dataset([bag], tmp_path / "jpeg")
    assert lossy[0].file[:2] == b"\xff\xd8" and lossy[0].picture().shape == pixels.shape


# ---------------------------------------------------------------------- on the disk


def same(one: Row, other: Row) -> bool:
    return one.file == other.file and np.array_equal(one.action, other.action) and (one.episode, one.step) == (other.episode, other.step)


def test_rows_are_found_by_number_in_order_and_in_other_processes(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    day = [one for k in range(4) for one in teleop_day(robot, 5, 5000.0 * k, f"task {k}")]
    summary, found = dataset([record(day), record(teleop_day(robot), "other")], tmp_path / "set", EpisodeRules(shard_bytes=1))
    assert len(list((tmp_path / "set" / summary.parts[0].folder).glob("rows-*.npy"))) == 4
    rows = list(found)
    assert len(rows) == len(found) == 26 and all(same(found[number], row) for number, row in enumerate(rows))
    assert [row.last for row in rows[:6]] == [False] * 4 + [True, False] and rows[7].instruction == "task 1"
    assert same(pickle.loads(pickle.dumps(found))[25], rows[25])
    assert np.array_equal(found.table(2)["action"][:, 0], [k / 100 for k in range(5)])
    assert [row.instruction for row in read(tmp_path / "set", lambda episode: episode.recording == "other")] == ["go"] * 6
    with pytest.raises(IndexError, match="row 26 of 26"):
        found[26]
    verify(tmp_path / "set")


def test_damage_is_found(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    summary, _ = dataset([record(teleop_day(robot))], tmp_path / "set")
    file = tmp_path / "set" / summary.parts[0].folder / "frames-00000.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-2] + b"??")
    Dataset(tmp_path / "set")
    with pytest.raises(BagError, match=r"frames-00000.bin is damaged"):
        verify(tmp_path / "set")
    file.write_bytes(content[:-1])
    with pytest.raises(BagError, match=r"has \d+ bytes, expected \d+: it is truncated"):
        Dataset(tmp_path / "set")


KILLED = """
import os, signal, sys
from pathlib import Path
from openvla_ros.bags.harvest import EpisodeRules, write_dataset
from openvla_ros.bags.steps import StepSettings
seen = []
def look():
    seen.append(0)
    if len(seen) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
write_dataset([Path(name) for name in sys.argv[3:]], Path(sys.argv[2]), StepSettings(), EpisodeRules(), on_picture=look)
"""


def test_a_killed_run_looks_unfinished_and_is_continued(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    bags, folder = [record(teleop_day(robot), name) for name in ("a", "b", "c")], tmp_path / "set"
    done = subprocess.run([sys.executable, "-c", KILLED, "10", str(folder), *map(str, bags)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL and any(folder.glob(".unfinished-*"))
    with pytest.raises(BagError, match=r"no finished dataset.*again; what is there already is kept"):
        Dataset(folder)
    summary, found = dataset(bags, folder)
    assert [part.reused for part in summary.parts] == [True, False, False] and len(found) == 18
    assert not any(folder.glob(".unfinished-*"))
    again, _ = dataset(bags, folder)
    assert all(part.reused for part in again.parts) and again.rows == 18


def test_another_dataset_is_replaced_only_when_asked(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    one, two = record(teleop_day(robot), "one"), record(teleop_day(robot), "two")
    dataset([one], tmp_path / "set")
    with pytest.raises(BagError, match=r"holds another dataset, of one, .*Use --force"):
        dataset([two], tmp_path / "set")
    with pytest.raises(BagError, match="other options"):
        dataset([one], tmp_path / "set", EpisodeRules(gap_s=2.0))
    assert dataset([one, two], tmp_path / "set")[0].rows == 12  # more of the same needs no force
    write_dataset([two], tmp_path / "set", StepSettings(), EpisodeRules(), force=True)
    assert [entry.name.split("-")[0] for entry in (tmp_path / "set").iterdir() if entry.is_dir()] == ["two"]
    assert {episode.recording for episode in Dataset(tmp_path / "set").episodes} == {"two"}


def test_places_that_are_not_ours_are_left_alone(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    bag = record(teleop_day(robot))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    with pytest.raises(BagError, match=r"is no dataset: it holds thesis\.tex"):
        dataset([bag], tmp_path / "home")
    with pytest.raises(BagError, match=r"cannot be written to .*Choose another --output"):
        dataset([bag], tmp_path / "home" / "thesis.tex" / "set")
    with pytest.raises(BagError, match="this release reads"):
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / DATASET).write_text('{"format": "openvla_ros episodes", "version": 99}')
        Dataset(tmp_path / "old")


def test_two_runs_do_not_write_to_one_folder(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    bag, refused = record(teleop_day(robot)), []

    def look() -> None:
        with pytest.raises(BagError, match="another run writes"):
            dataset([bag], tmp_path / "set")
        refused.append(True)

    write_dataset([bag], tmp_path / "set", StepSettings(), EpisodeRules(), on_picture=look)
    assert len(refused) == 6


class Deadly(PosixPath):
    """A path that ends the process that it is sent to."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_a_worker_that_dies_takes_only_its_own_recording(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    bags = [record(teleop_day(robot), name) for name in ("a", "b")]
    summary = write_dataset([bags[0], Deadly(tmp_path / "x"), bags[1]], tmp_path / "set", StepSettings(), EpisodeRules(), workers=2)
    assert [part.recording for part in summary.parts] == ["a", "b"] and summary.rows == 12
    assert "died" in summary.failed[str(tmp_path / "x")]


def test_what_was_left_out_is_on_the_disk_too(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    summary, _ = dataset([record([*teleop_day(robot), robot.image(1300)]), tmp_path / "none"], tmp_path / "set")
    content = json.loads((tmp_path / "set" / LEFT_OUT).read_text(encoding="utf-8"))
    assert content["failed"] == summary.failed and "there is no recording" in content["failed"][str(tmp_path / "none")]
    assert content["recordings"][0]["left_out"] == [{"kind": "picture", "topic": "/camera/image_raw/compressed",
                                                     "reason": "no step began with it", "count": 1, "ranges": [[6, 6]]}]
    part = json.loads((tmp_path / "set" / summary.parts[0].folder / PART).read_text(encoding="utf-8"))
    assert part["settings"]["gap_s"] == 0.8 and part["path"] == str((tmp_path / "day").resolve())


def test_nothing_at_all_is_an_error_with_the_reasons(robot: Robot, record: MakeBag, tmp_path: Path) -> None:
    bag = record([robot.text(0, "go"), robot.image(1), robot.action(2, [0.1] * 6 + [np.nan])])
    with pytest.raises(BagError, match=r"no episode came out.*1 actions: no finite gripper"):
        dataset([bag], tmp_path / "set")
    assert not (tmp_path / "set" / DATASET).exists()


def test_a_drawn_episode_is_one_episode(tmp_path: Path) -> None:
    make_episode(tmp_path / "drawn", EpisodeSettings(seconds=2.0, width=64, height=48))
    _, found = dataset([tmp_path / "drawn"], tmp_path / "set")
    assert [episode.rows for episode in found.episodes] == [9] and found[0].picture().shape == (48, 64, 3)


@pytest.mark.parametrize(("settings", "words"), [({"source": "guess"}, "auto, sent, recorded"), ({"raw_as": "gif"}, "jpeg, png")])
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        StepSettings(**settings)
    with pytest.raises(ConfigurationError, match=r"0\.05 to 3600 s"):
        EpisodeRules(gap_s=float("nan"))
