"""Action statistics: units, masks, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openvla_ros.errors import CheckpointError, UnknownStatistics
from openvla_ros.policy.statistics import check_statistics, choose_statistics, read_statistics

ENTRY = {"action": {"q01": [-0.02, -1.0, 0.0], "q99": [0.04, 1.0, 0.0], "mask": [True, False, True]}}


def test_masked_numbers_get_units_and_the_others_stay() -> None:
    statistics = check_statistics("mine", ENTRY)
    np.testing.assert_allclose(statistics.to_metric(np.array([-1.0, 0.3, 0.7])), [-0.02, 0.3, 0.0], atol=1e-15)
    np.testing.assert_allclose(statistics.to_metric(np.array([[1.0, -0.5, -1.0], [0.0, 0.0, 0.0]])), [[0.04, -0.5, 0.0], [0.01, 0.0, 0.0]])
    assert statistics.length == 3


@given(normalized=arrays(np.float64, 3, elements=st.floats(-1, 1)))
def test_to_normalized_is_the_inverse_inside_the_range(normalized: np.ndarray) -> None:
    statistics = check_statistics("mine", ENTRY)
    back = statistics.to_normalized(statistics.to_metric(normalized))
    expected = [normalized[0], normalized[1], 0.0]  # the last dimension has no range
    np.testing.assert_allclose(back, expected, atol=1e-6)


def test_to_normalized_clips_outliers() -> None:
    statistics = check_statistics("mine", ENTRY)
    np.testing.assert_allclose(statistics.to_normalized(np.array([9.0, 5.0, 1.0])), [1.0, 5.0, 0.0])


@pytest.mark.shared
def test_all_embodiments_of_openvla_7b(shared) -> None:  # type: ignore[no-untyped-def]
    statistics = json.loads((shared / "data" / "openvla_7b_norm_stats.json").read_text())
    assert len(statistics) == 25
    for key in statistics:
        chosen = choose_statistics(statistics, key)
        assert chosen.length == 7 and chosen.mask.tolist() == [True] * 6 + [False]
        low, high = chosen.to_metric(np.full(7, -1.0)), chosen.to_metric(np.full(7, 1.0))
        np.testing.assert_allclose(low[:6], chosen.q01[:6], atol=1e-12)
        np.testing.assert_allclose(high[:6], chosen.q99[:6], atol=1e-12)
        assert low[6] == -1.0 and high[6] == 1.0
    bridge = choose_statistics(statistics, "bridge_orig")
    assert bridge.q01[0] == pytest.approx(-0.02872725, abs=1e-8) and bridge.q99[5] == pytest.approx(0.20382575, abs=1e-8)


def test_missing_mask_means_every_number_has_units() -> None:
    statistics = check_statistics("mine", {"action": {"q01": [0.0, 0.0], "q99": [2.0, 4.0]}})
    np.testing.assert_allclose(statistics.to_metric(np.zeros(2)), [1.0, 2.0])


def test_key_rules() -> None:
    assert choose_statistics({"only": ENTRY}, None).key == "only"
    assert choose_statistics({"only": ENTRY}, "").key == "only"
    with pytest.raises(UnknownStatistics, match="a, b"):
        choose_statistics({"b": ENTRY, "a": ENTRY}, None)
    with pytest.raises(UnknownStatistics, match=r"'c'; it has a, b\. Set unnorm_key"):
        choose_statistics({"b": ENTRY, "a": ENTRY}, "c")


@pytest.mark.parametrize(("action", "words"), [
    ({}, "lack"),
    (None, "lack"),
    ({"q01": [0.0]}, "lack"),
    ({"q01": ["a"], "q99": [1.0]}, "lists of numbers"),
    ({"q01": [[0.0], [1.0, 2.0]], "q99": [1.0]}, "lists of numbers"),
    ({"q01": [0.0, 0.0], "q99": [1.0]}, "shapes"),
    ({"q01": [], "q99": []}, "shapes"),
    ({"q01": 0.0, "q99": 1.0}, "shapes"),
    ({"q01": [0.0], "q99": [1.0], "mask": [True, False]}, "shapes"),
    ({"q01": [0.0], "q99": [1.0], "mask": ["yes"]}, "true and false"),
    ({"q01": [float("nan")], "q99": [1.0]}, "NaN"),
    ({"q01": [0.0], "q99": [float("inf")]}, "NaN or infinity"),
    ({"q01": [0.0, 2.0], "q99": [1.0, 1.0]}, "below q01 in dimension 1"),
])
def test_malformed_statistics_say_what_is_wrong(action: object, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        check_statistics("mine", {"action": action})
    assert "'mine'" in str(caught.value)


def test_dataset_statistics_file_replaces_norm_stats(tmp_path) -> None:  # type: ignore[no-untyped-def]
    configuration = {"norm_stats": {"base": ENTRY}}
    assert set(read_statistics(tmp_path, configuration)) == {"base"}
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"mine": ENTRY}))
    assert set(read_statistics(tmp_path, configuration)) == {"mine"}
    (tmp_path / "dataset_statistics.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_statistics(tmp_path, configuration)
    (tmp_path / "dataset_statistics.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no action statistics"):
        read_statistics(tmp_path, configuration)
    with pytest.raises(CheckpointError, match="no action statistics"):
        read_statistics(tmp_path / "elsewhere", {})
