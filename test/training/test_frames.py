from __future__ import annotations

from pathlib import Path

import numpy as np

from openvla_ros.training.default_policy.collect import Recorder
from openvla_ros.training.default_policy.frames import FrameSet, has_frames, load_truth, save_frames


def test_what_was_recorded_is_read_back(frames: FrameSet, recorder: Recorder) -> None:
    assert len(frames) == len(recorder.pictures) >= 90
    for index in (0, 49, 50, len(frames) - 1):
        np.testing.assert_array_equal(frames.picture(index), recorder.pictures[index])
    for name, values in vars(recorder.truth()).items():
        np.testing.assert_array_equal(getattr(frames.truth, name), values)


def test_a_collection_counts_only_when_it_is_whole(recorder: Recorder, tmp_path: Path) -> None:
    np.save(tmp_path / "round.npy", np.stack(recorder.pictures[:3]))  # killed before the labels were written
    assert not has_frames(tmp_path, "round")
    save_frames(tmp_path, "round", recorder.pictures, recorder.truth())
    assert has_frames(tmp_path, "round") and len(load_truth(tmp_path / "round.npz")) == len(recorder.pictures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round.npy", "round.npz"]
