"""The drawn episode follows the conventions of the real recordings, and is written whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory

from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.bags.frames import Frame, frames, select
from openvla_ros.bags.read import Recording
from openvla_ros.bags.scene import LEGS, draw, lay_out, move
from openvla_ros.errors import BagError, ConfigurationError, InstructionError
from openvla_ros.observation.assemble import FrameJudge

SMALL = EpisodeSettings(seconds=4.0, width=160, height=120)


def read(folder: Path) -> list[Frame]:
    with Recording(folder) as recording:
        return list(frames(recording, select(recording)))


def states(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Recorded poses [n, 4] (x, y, z, yaw) and gripper [n]."""
    with Recording(folder) as recording:
        poses, grippers = [], []
        for raw in recording.messages([recording.topic("/state/ee_pose"), recording.topic("/state/gripper")]):
            message = recording.decode(raw)
            if raw.topic.name == "/state/gripper":
                grippers.append(message.data)
            else:
                point, turn = message.pose.position, message.pose.orientation
                poses.append([point.x, point.y, point.z, 2 * np.arctan2(turn.z, turn.w)])
    return np.array(poses), np.array(grippers)


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "episode"
    make_episode(folder, SMALL)
    return folder


@pytest.mark.shared
def test_topics_types_and_qualities_are_those_of_the_real_recordings(episode: Path, shared: Path) -> None:
    with Recording(episode) as made, Recording(shared / "data/bags/bridge_v2_broccoli_640x480") as real:
        assert [(topic.name, topic.type, topic.quality, topic.digest) for topic in made.topics] == [
            (topic.name, topic.type, topic.quality, topic.digest) for topic in real.topics]


def test_frames_and_actions_are_paired_and_stamped_like_the_real_ones(episode: Path) -> None:
    found = read(episode)
    assert len(found) == 20 and [frame.recorded is None for frame in found] == [False] * 19 + [True]
    assert {frame.rgb.shape for frame in found} == {(120, 160, 3)} and all(frame.jpeg for frame in found)
    assert set(np.diff([frame.stamp_ns for frame in found])) == {200_000_000}
    assert found[0].stamp_ns == found[0].log_ns == 1_700_000_000_010_000_000


def test_actions_are_the_motion(episode: Path) -> None:
    """Chained from the first pose, the recorded deltas go through every recorded pose; the gripper closes and opens."""
    poses, grippers = states(episode)
    actions = np.array([frame.recorded for frame in read(episode)[:-1]])
    chained = poses[0] + np.cumsum(actions[:, [0, 1, 2, 5]], axis=0)
    np.testing.assert_allclose(chained, poses[1:], atol=1e-9)
    np.testing.assert_allclose(actions[:, 6], grippers[1:], atol=1e-12)
    assert np.abs(np.diff(poses[:, :3], axis=0)).sum(axis=0).min() > 0.01  # it moves along every axis
    assert grippers.min() == 0.0 and grippers[0] == grippers[-1] == 1.0


def test_the_default_motion_is_inside_the_step_clamp_of_the_arm() -> None:
    """0.05 m and 0.25 rad per step: a policy that repeats the recording is never clamped."""
    settings = EpisodeSettings()
    layout = lay_out(settings.seed)
    moments = [move(layout, k / (settings.frames - 1)) for k in range(settings.frames)]
    steps = np.diff([moment.position_m for moment in moments], axis=0)
    assert np.linalg.norm(steps, axis=1).max() < 0.05
    assert np.abs(np.diff([moment.yaw_rad for moment in moments])).max() < 0.25


@pytest.mark.parametrize("seed", range(4))
def test_the_block_ends_in_the_bowl_and_never_jumps(seed: int) -> None:
    layout = lay_out(seed)
    shares = np.linspace(0.0, 1.0, 2001)
    blocks = np.array([move(layout, share).block_m for share in shares])
    np.testing.assert_allclose(blocks[-1][:2], layout.bowl_m)
    assert np.abs(np.diff(blocks, axis=0)).max() < 0.002
    assert (np.abs(blocks[shares <= LEGS[3]][:, :2] - layout.blocks_m[0]) < 1e-12).all()


def test_the_picture_follows_the_arm() -> None:
    """The centre of the dark gripper pixels moves right in the picture when the arm moves to its left (it faces the camera)."""
    layout = lay_out(0)

    def centre(share: float) -> float:
        dark = draw(layout, move(layout, share), 320, 240).max(axis=2) < 70
        return float(np.nonzero(dark)[1].mean())

    assert centre(LEGS[1]) > centre(0.0) > centre(LEGS[5])


def test_every_frame_differs_so_that_no_camera_looks_frozen(episode: Path) -> None:
    judge = FrameJudge()
    with Recording(episode) as recording:
        for raw in recording.messages([recording.topic("/camera/image_raw/compressed")]):
            assert judge.judge(raw.log_ns, raw.log_ns, recording.decode(raw).data).usable


def test_a_second_library_reads_it(episode: Path) -> None:
    with (episode / "episode.mcap").open("rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()], validate_crcs=True)
        images = [image for _, _, _, image in reader.iter_decoded_messages(topics=["/camera/image_raw/compressed"])]
    assert len(images) == 20
    assert cv2.imdecode(np.frombuffer(images[3].data, np.uint8), cv2.IMREAD_COLOR).shape == (120, 160, 3)


def test_equal_seeds_give_equal_recordings(tmp_path: Path) -> None:
    def pictures(name: str, seed: int) -> str:
        make_episode(tmp_path / name, EpisodeSettings(seconds=1.0, width=64, height=48, seed=seed))
        return hashlib.sha256(b"".join(frame.rgb.tobytes() for frame in read(tmp_path / name))).hexdigest()

    assert pictures("a", 1) == pictures("b", 1) != pictures("c", 2)


def test_what_is_there_is_replaced_only_when_told_and_only_a_recording(tmp_path: Path) -> None:
    settings = EpisodeSettings(seconds=1.0, width=64, height=48)
    make_episode(tmp_path / "a", settings)
    with pytest.raises(BagError, match=r"exists already\. Use --force"):
        make_episode(tmp_path / "a", settings)
    make_episode(tmp_path / "a", EpisodeSettings(seconds=2.0, width=64, height=48), force=True)
    assert len(read(tmp_path / "a")) == 10
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(BagError, match="is no recording"):
        make_episode(tmp_path / "home", settings, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "home"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BagError, match="cannot be written"):
        make_episode(tmp_path / "file" / "a", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("wrong", [{"seconds": 0.0}, {"seconds": float("nan")}, {"fps": 1000.0}, {"width": 8}, {"height": 10_000},
                                   {"instruction": " "}])
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        EpisodeSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InstructionError):
        EpisodeSettings(instruction="go</s>")
