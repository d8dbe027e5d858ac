"""Two policies' answers side by side: agreement, errors and worst frames by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openvla_ros.bags.compare import compare
from openvla_ros.bags.replay import ReplayedFrame


def frame(index: int, ids: tuple[int, ...], action: Any, fault: str = "") -> ReplayedFrame:
    return ReplayedFrame(index, index, "go", ids, None if action is None else np.array(action, float), None, fault, {})


SAME = (1, 2, 3, 4, 5, 6, 7)


def test_agreement_errors_and_worst_frames() -> None:
    base = [frame(0, SAME, [0.0] * 7), frame(1, SAME, [0.0] * 7), frame(2, SAME, None, "fault"), frame(3, SAME, [0.0] * 7),
            frame(9, SAME, [1.0] * 7)]
    other = [frame(0, SAME, [0.0] * 7), frame(1, (9, *SAME[1:]), [0.02, 0, 0, 0, 0, 0, 0]), frame(2, SAME, [0.0] * 7),
             frame(3, (9, 9, *SAME[2:]), [0.01, 0, 0, 0, 0, -0.5, 0]), frame(4, SAME, [5.0] * 7)]
    found = compare("a", base, "b", other)
    assert (found.frames, found.only_one) == (3, (2,))
    assert found.same_ids == pytest.approx(1 / 3)
    assert found.agreement == pytest.approx((1 / 3, 2 / 3, 1, 1, 1, 1, 1))
    assert found.errors[0].mean_abs == pytest.approx(0.01) and found.errors[0].bias == pytest.approx(0.01) and found.errors[0].unit == "m"
    assert found.errors[5].max_abs == pytest.approx(0.5) and found.errors[5].bias == pytest.approx(-0.5 / 3)
    assert [(worst.index, worst.dimension) for worst in found.worst] == [(3, "dyaw"), (1, "dx"), (0, "dx")]
    assert [worst.score for worst in found.worst] == pytest.approx([10.0, 2.0, 0.0])
    np.testing.assert_array_equal(found.worst[0].apart, [0.01, 0, 0, 0, 0, -0.5, 0])
    assert len(compare("a", base, "b", other, worst=1).worst) == 1


def test_policies_without_tokens_or_without_a_frame_in_common() -> None:
    found = compare("a", [frame(0, (), [0.0] * 7)], "b", [frame(0, (), [0.1] * 7)])
    assert found.agreement is None and found.same_ids is None and found.errors[0].mean_abs == pytest.approx(0.1)
    nothing = compare("a", [frame(0, SAME, [0.0] * 7)], "b", [frame(1, SAME, [0.0] * 7)])
    assert nothing.frames == 0 and nothing.worst == () and nothing.errors[0].mean_abs is None
