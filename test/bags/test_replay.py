"""A policy over a recording: every frame answered, deterministic, statistics right, reports whole and legible."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory

from openvla_ros.bags.frames import Tally, select
from openvla_ros.bags.read import Recording
from openvla_ros.bags.replay import Replay, ReplayedFrame, dimension_errors, replay
from openvla_ros.bags.report import as_plain, write_report
from openvla_ros.contract import ACTION_NAMES, Action, ActionChunk, Evidence, Observation, Policy
from openvla_ros.errors import BagError
from openvla_ros.policy.catalogue import PolicySettings, load_policy
from openvla_ros.policy.scripted import ScriptedPolicy

MakeBag = Callable[..., Path]


class Recorder:
    """A policy that answers with what it is told and remembers what it saw."""

    name, step_s, notes = "recorder", 0.2, ("made for tests",)

    def __init__(self, answers: dict[int, Any]) -> None:
        self.answers, self.seen = answers, list[Observation]()

    def act(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        answer = self.answers.get(len(self.seen) - 1, [0.0] * 7)
        steps, fault = ((), answer) if isinstance(answer, str) else ((Action.from_vector(answer),), "")
        return ActionChunk(steps, 0.2, observation.stamp_ns, token_ids=(1, 2), fault=fault, stage_ms={"think": 1.0})

    def self_test(self) -> tuple[()]:
        return ()

    def close(self) -> None:
        pass


def run(path: Path, policy: Policy, stride: int = 1, limit: int = 0, **names: str) -> Replay:
    with Recording(path) as recording:
        return replay(recording, select(recording, **names), policy, stride, limit)


def small(messages: Any) -> list[Any]:
    return [messages.text(0, "go"), *(one for k in range(5) for one in (
        messages.image(200 * k + 10, k, cut=3 if k == 3 else 0), messages.numbers(200 * k + 12, [k] * 7)))]


def test_every_frame_is_answered_in_order_and_faults_stay_in_their_frame(write_bag: MakeBag, messages: Any) -> None:
    policy = Recorder({0: [1.0] * 7, 2: "early end"})
    found = run(write_bag(small(messages)), policy)
    assert [frame.index for frame in found.frames] == [0, 1, 2, 3, 4]
    assert [observation.rgb[0, 0, 0] for observation in policy.seen] == [0, 1, 2, 4]  # the broken picture was not shown
    assert [bool(frame.fault) for frame in found.frames] == [False, False, True, True, False]
    assert "early end" in found.frames[2].fault and "truncated" in found.frames[3].fault
    assert all((frame.action is None) == bool(frame.fault) for frame in found.frames)
    assert [frame.recorded[0] for frame in found.frames] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert policy.seen[0].stamp_ns == messages.t0_ns + 10_000_000 and policy.seen[0].instruction == "go"


def test_the_first_step_of_a_chunk_is_kept_and_the_others_are_counted(write_bag: MakeBag, messages: Any) -> None:
    class Planner(Recorder):
        def act(self, observation: Observation) -> ActionChunk:
            chunk = super().act(observation)
            return replace(chunk, steps=(*chunk.steps, Action.from_vector([1.0] * 7)))

    found = run(write_bag(small(messages)), Planner({}), limit=2)
    assert [frame.steps for frame in found.frames] == [2, 2] and found.frames[0].action is not None
    np.testing.assert_array_equal(found.frames[0].action, np.zeros(7))


def test_two_replays_are_equal_and_a_different_one_is_not(write_bag: MakeBag, messages: Any) -> None:
    bag = write_bag(small(messages))
    assert run(bag, ScriptedPolicy()).digest == run(bag, ScriptedPolicy()).digest
    assert run(bag, Recorder({})).digest != run(bag, Recorder({1: [0.0] * 6 + [1e-9]})).digest


class Together(Recorder):
    """The same, for several frames at once, prepared in other threads, with evidence."""

    def __init__(self, answers: dict[int, Any]) -> None:
        super().__init__(answers)
        self.batches = list[int]()

    def prepare(self, observation: Observation) -> int:
        assert threading.current_thread() is not threading.main_thread()
        return int(observation.rgb[0, 0, 0])

    def act_prepared(self, observations: Sequence[Observation], prepared: Sequence[int]) -> list[tuple[ActionChunk, Evidence]]:
        self.batches.append(len(observations))
        return [(self.act(observation), Evidence((grey,), "pixels", (1.0,)))
                for observation, grey in zip(observations, prepared, strict=True)]


def test_batches_change_nothing_but_how_often_the_policy_is_asked(write_bag: MakeBag, messages: Any) -> None:
    bag, answers = write_bag(small(messages)), {0: [1.0] * 7, 2: "early end", 3: [0.5] * 7}
    policy = Together(answers)
    with Recording(bag) as recording:
        found = replay(recording, select(recording), policy, batch=3, marks=True)
    alone = run(bag, Recorder(answers))
    assert policy.batches == [3, 1] and found.digest == alone.digest  # of the second three one picture is broken
    assert [frame.evidence.input_ids if frame.evidence else None for frame in found.frames] == [(0,), (1,), (2,), None, (4,)]
    assert all(frame.marks is not None for frame in found.frames) and all(frame.marks is None for frame in alone.frames)
    assert [frame.log_ns for frame in found.frames] == [messages.t0_ns + (200 * k + 10) * 1_000_000 for k in range(5)]


def test_what_is_odd_about_a_recording_is_in_the_notes(write_bag: MakeBag, messages: Any) -> None:
    bag = write_bag([messages.text(0, "go"), *(messages.image(k + 1, k) for k in range(200))])
    file = bag / "bag.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    found = run(bag, Recorder({}))
    assert 20 < len(found.frames) < 200 and found.notes[0] == "made for tests" and "as far as it is whole" in found.notes[1]


def test_nothing_to_show_is_refused(write_bag: MakeBag, messages: Any) -> None:
    with pytest.raises(BagError, match="1 images, 1 of them before an instruction"):
        run(write_bag([messages.image(0), messages.text(5, "go")]), ScriptedPolicy())


def test_error_statistics_agree_with_the_slow_way() -> None:
    rng = np.random.default_rng(7)
    predicted, recorded = rng.normal(size=(40, 7)), rng.normal(size=(40, 7))
    recorded[::4, 6] = np.nan
    seen = [ReplayedFrame(k, k, "go", (), predicted[k], recorded[k], "", {}) for k in range(40)]
    seen += [ReplayedFrame(40, 40, "go", (), None, recorded[0], "fault", {}), ReplayedFrame(41, 41, "go", (), predicted[0], None, "", {})]
    for column, found in enumerate(dimension_errors(seen)):
        pairs = [(p, r) for p, r in zip(predicted[:, column], recorded[:, column], strict=True) if r == r]
        sizes = sorted(abs(p - r) for p, r in pairs)
        assert found.name == ACTION_NAMES[column] and found.pairs == len(pairs) == (30 if column == 6 else 40)
        assert found.mean_abs == pytest.approx(sum(sizes) / len(sizes)) and found.max_abs == pytest.approx(sizes[-1])
        assert found.median_abs == pytest.approx((sizes[len(sizes) // 2 - 1] + sizes[len(sizes) // 2]) / 2)
        assert found.bias == pytest.approx(sum(p - r for p, r in pairs) / len(pairs))
        means = [sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1)]
        products = [sum((a[x] - means[x]) * (a[y] - means[y]) for a in pairs) for x, y in ((0, 1), (0, 0), (1, 1))]
        assert found.correlation == pytest.approx(products[0] / (products[1] * products[2]) ** 0.5)


def test_statistics_that_cannot_be_said_are_null(write_bag: MakeBag, messages: Any) -> None:
    found = run(write_bag([messages.text(0, "go"), messages.image(10)]), ScriptedPolicy())
    assert all(error.pairs == 0 and error.mean_abs is None for error in found.errors)
    constant = run(write_bag(small(messages), "b"), Recorder({}))
    assert all(error.correlation is None and error.mean_abs == pytest.approx(7 / 4) for error in constant.errors)


# --- reports


def test_the_report_is_json_without_nan_and_a_picture(write_bag: MakeBag, messages: Any, tmp_path: Path) -> None:
    bag = write_bag([*small(messages), messages.twist(1100, [0.1] * 6)])
    found = run(bag, Recorder({2: "early end"}), action_topic="/teleop/action")
    json_path, picture_path = write_report(found, tmp_path / "deep" / "report")
    plain = json.loads(json_path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert plain == json.loads(json.dumps(as_plain(found)))
    assert plain["frame_count"] == 5 and plain["fault_count"] == 2 and plain["digest"] == found.digest
    assert plain["frames"][2]["action"] is None and plain["frames"][2]["fault"] == "early end"
    assert plain["median_ms"]["think"] == 1.0 and plain["action_names"] == list(ACTION_NAMES)
    picture = cv2.imread(str(picture_path))
    assert picture.shape[:2] == (1050, 1500) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert sorted(path.name for path in json_path.parent.iterdir()) == ["replay.json", "replay.png"]


def test_a_report_replaces_the_older_one_and_a_file_in_the_way_is_named(write_bag: MakeBag, messages: Any, tmp_path: Path) -> None:
    found = run(write_bag(small(messages)), ScriptedPolicy())
    first = write_report(found, tmp_path / "report")[0].read_text()
    assert json.loads(write_report(found, tmp_path / "report")[0].read_text())["digest"] == json.loads(first)["digest"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BagError, match="Choose another --output"):
        write_report(found, tmp_path / "file")


def test_a_report_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    frame = ReplayedFrame(0, 0, "go", (), np.full(3, 1.0), None, "", {})  # not an action: the plot cannot be drawn
    with pytest.raises(IndexError):
        write_report(Replay("bag", "policy", (), "/image", "", "", (frame,), Tally()), tmp_path)
    assert not list(tmp_path.iterdir())


# --- real recordings through the real, tiny model


@pytest.fixture(scope="module")
def tiny(shared: Path) -> Iterator[Callable[[str], Policy]]:
    """The golden checkpoint with other statistics on request."""
    pytest.importorskip("torch")
    loaded: dict[str, Policy] = {}

    def load(key: str) -> Policy:
        if key not in loaded:
            loaded[key] = load_policy(PolicySettings(str(shared / "golden/tiny_fused/checkpoint"), key, device="cpu", dtype="float32"),
                                      progress=False)
        return loaded[key]

    yield load
    for policy in loaded.values():
        policy.close()


FRANKA = "iamlab_cmu_pickup_insert_converted_externally_to_rlds"  # the published statistics have no DROID


@pytest.mark.shared
@pytest.mark.parametrize(("name", "key", "instruction"), [
    ("bridge_v2_cloth_640x480_db3", "bridge_orig", ""), ("bridge_v2_pot_640x480_raw", "bridge_orig", ""),
    ("bridge_octo_debug_64px", "bridge_orig", ""), ("rt1_7up_320x256", "fractal20220817_data", ""),
    ("rt1_chipbag_320x256", "fractal20220817_data", ""), ("droid_bottle_in_bag_320x192", FRANKA, ""),
    ("pr2_elevator_button_bayer_raw", "bridge_orig", "push the button"),
    ("raspicam_single_frame_1280x960", "bridge_orig", "pick up the marker"),
    ("soccer_robot_camera_2frames_raw", "bridge_orig", "kick the ball")])
def test_every_real_camera_recording_goes_through_the_model(shared: Path, tiny: Callable[[str], Policy], name: str, key: str,
                                                            instruction: str) -> None:
    found = run(shared / "data/bags" / name, tiny(key), limit=2, instruction=instruction)
    assert 1 <= len(found.frames) <= 2
    for frame in found.frames:
        assert len(frame.token_ids) > 0 and (frame.fault or np.isfinite(frame.action).all())
    assert found.digest == run(shared / "data/bags" / name, tiny(key), limit=2, instruction=instruction).digest


@pytest.mark.shared
def test_a_whole_bridge_episode_goes_through_the_model(shared: Path, tiny: Callable[[str], Policy], tmp_path: Path) -> None:
    found = run(shared / "data/bags/bridge_v2_broccoli_640x480", tiny("bridge_orig"))
    assert len(found.frames) == 43 and found.tally.actions == 42
    stamps_ns = [frame.stamp_ns for frame in found.frames]
    np.testing.assert_allclose(np.diff(stamps_ns), 200_000_000, atol=1)
    good = [frame for frame in found.frames if not frame.fault]
    assert {error.pairs for error in found.errors} == {sum(frame.recorded is not None for frame in good)}
    write_report(found, tmp_path)


@pytest.mark.shared
def test_the_model_sees_exactly_the_recorded_pictures(shared: Path, tiny: Callable[[str], Policy]) -> None:
    """A second way from the file to the model: the mcap library and OpenCV in place of our reader and decoder."""
    file = shared / "data/bags/rt1_chipbag_320x256/rt1_chipbag_320x256.mcap"
    policy = tiny("fractal20220817_data")
    ours = run(file, policy, limit=3)
    with file.open("rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        theirs = reader.iter_decoded_messages(topics=["/camera/image_raw/compressed"])
        for frame, (_, _, message, image) in zip(ours.frames, theirs, strict=False):
            bgr = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
            chunk = policy.act(Observation(np.ascontiguousarray(bgr[:, :, ::-1]), frame.instruction, frame.stamp_ns, jpeg=True))
            assert tuple(chunk.token_ids) == frame.token_ids and message.log_time == frame.stamp_ns
