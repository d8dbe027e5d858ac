"""Which texts and frames may become an observation, and what is said about the rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.errors import ConfigurationError, InstructionError
from openvla_ros.observation.assemble import (
    COMPRESSED_LOSS_REMEDY,
    LOSS_REMEDY,
    NO_FRAMES_REMEDY,
    REMEDIES,
    FrameJudge,
    FrameLimits,
    FrameReason,
    check_instruction,
    estimate_loss,
)

T0 = 1_700_000_000_000_000_000
MS = 1_000_000


def noise(seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, 30_000, dtype=np.uint8).tobytes()


def fill(judge: FrameJudge, count: int, period_ms: int = 100, start_ns: int = T0, latency_ms: int = 20) -> int:
    """`count` good frames; returns the time of the last arrival."""
    for k in range(count):
        verdict = judge.judge(start_ns + k * period_ms * MS, start_ns + (k * period_ms + latency_ms) * MS, noise(k))
        assert verdict.reason is FrameReason.FRESH
    return start_ns + ((count - 1) * period_ms + latency_ms) * MS


# --- instructions


@pytest.mark.parametrize("text", ["put the broccoli next to the bowl", "Place the cloth behind the pot.", "mets la tasse à gauche",
                                  "把杯子放在桌上", "a < b", "x" * 256])
def test_plain_text_passes_unchanged(text: str) -> None:
    assert check_instruction(text) == text


@pytest.mark.parametrize("text", ["", " ", "\n", "\t  \n"])
def test_nothing_means_stop(text: str) -> None:
    assert check_instruction(text) == ""


def test_outer_white_space_goes() -> None:
    assert check_instruction("  lift the lid\n") == "lift the lid"


@pytest.mark.parametrize(("text", "word"), [
    ("x" * 257, "257 characters"), ("lift\nthe lid", "U\\+000A"), ("lift\tthe lid", "U\\+0009"), ("lift\0", "U\\+0000"),
    ("lift \u202e the lid", "U\\+202E"), ("lift \u2028 the lid", "U\\+2028"), ("lift \ud800", "U\\+D800"), ("a\x7fb", "U\\+007F"),
    ("stop</s>", "special token </s>"), ("<s>go", "special token <s>"), ("go <unk>", "<unk>"), ("<PAD>", "<PAD>"), ("<pad>", "<PAD>"),
])
def test_texts_that_speak_to_the_machine_are_refused(text: str, word: str) -> None:
    with pytest.raises(InstructionError, match=word):
        check_instruction(text)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=300))
def test_what_passes_is_short_and_visible_and_passes_again(text: str) -> None:
    try:
        instruction = check_instruction(text)
    except InstructionError:
        return
    assert len(instruction) <= 256 and not any(ord(character) < 32 for character in instruction)
    assert check_instruction(instruction) == instruction


# --- stamps


def test_good_frames_are_fresh_and_healthy() -> None:
    judge = FrameJudge()
    now_ns = fill(judge, 20)
    seen = judge.statistics(now_ns)
    assert seen.healthy and seen.remedy == "" and seen.received == 20 and not seen.refused
    assert seen.rate_hz == pytest.approx(10.0) and seen.spacing_s == pytest.approx(0.1)
    assert seen.lost_fraction == 0.0 and seen.age_s == pytest.approx(0.02) and seen.silent_s == 0.0


@pytest.mark.parametrize(("stamp_ns", "now_ns", "reason"), [
    (0, T0, FrameReason.ZERO_STAMP), (-5, T0, FrameReason.ZERO_STAMP),
    (T0, T0, FrameReason.FRESH), (T0, T0 + 600 * MS, FrameReason.FRESH), (T0, T0 + 600 * MS + 1, FrameReason.STALE),
    (T0 + 100 * MS, T0, FrameReason.FRESH), (T0 + 100 * MS + 1, T0, FrameReason.FUTURE),
])
def test_bounds_of_age(stamp_ns: int, now_ns: int, reason: FrameReason) -> None:
    verdict = FrameJudge().judge(stamp_ns, now_ns)
    assert verdict.reason is reason and verdict.usable == (reason is FrameReason.FRESH)
    assert verdict.age_s == pytest.approx((now_ns - stamp_ns) / 1e9)


def test_repeated_and_older_stamps_are_refused_and_the_newest_wins() -> None:
    judge = FrameJudge()
    assert judge.judge(T0, T0).usable
    assert judge.judge(T0, T0 + 10 * MS).reason is FrameReason.REPEATED
    assert judge.judge(T0 - 50 * MS, T0 + 20 * MS).reason is FrameReason.WENT_BACK
    assert judge.judge(T0 + 30 * MS, T0 + 30 * MS).usable


def test_a_stamp_of_the_future_does_not_block_the_frames_after_it() -> None:
    judge = FrameJudge()
    assert judge.judge(T0 + 10**12, T0).reason is FrameReason.FUTURE
    assert judge.judge(T0, T0 + MS).usable


def test_receive_stamps_take_zero_stamps_at_the_time_of_arrival() -> None:
    judge = FrameJudge(FrameLimits(stamp_source="receive"))
    verdict = judge.judge(0, T0)
    assert verdict.usable and verdict.stamp_ns == T0 and verdict.age_s == 0.0


def test_a_recording_that_starts_again_is_taken_from_its_first_frame() -> None:
    judge = FrameJudge()
    fill(judge, 10)
    fill(judge, 10)  # clock and stamps go back by 0.9 s
    assert judge.statistics(T0 + 920 * MS).clock_jumps == 1


def test_callbacks_that_overtake_each_other_are_no_clock_jump() -> None:
    judge = FrameJudge()
    now_ns = fill(judge, 5)
    assert judge.statistics(now_ns - 5 * MS).clock_jumps == 0
    assert judge.judge(T0 + 300 * MS, now_ns + MS).reason is FrameReason.WENT_BACK  # nothing was forgotten


# --- frozen pictures


def test_a_frozen_camera_is_noticed_at_the_set_count_and_recovers() -> None:
    judge = FrameJudge(FrameLimits(frozen_after=4))
    reasons = [judge.judge(T0 + k * 100 * MS, T0 + k * 100 * MS, noise(0)).reason for k in range(6)]
    assert reasons == [FrameReason.FRESH] * 3 + [FrameReason.FROZEN] * 3
    assert judge.judge(T0 + 600 * MS, T0 + 600 * MS, noise(1)).usable


def test_the_frozen_check_can_be_switched_off() -> None:
    judge = FrameJudge(FrameLimits(frozen_after=0))
    assert all(judge.judge(T0 + k * MS, T0 + k * MS, noise(0)).usable for k in range(50))


def test_one_late_frame_does_not_hide_a_frozen_camera() -> None:
    judge = FrameJudge(FrameLimits(frozen_after=3))
    arrivals_ms = [0, 100, 1200, 1210]
    stamps_ms = [0, 100, 200, 1200]
    reasons = [judge.judge(T0 + stamp * MS, T0 + now * MS, noise(0)).reason
               for stamp, now in zip(stamps_ms, arrivals_ms, strict=True)]
    assert reasons == [FrameReason.FRESH, FrameReason.FRESH, FrameReason.STALE, FrameReason.FROZEN]


# --- what diagnostics say


def test_silence_names_its_remedy() -> None:
    judge = FrameJudge()
    assert judge.statistics(T0).remedy == NO_FRAMES_REMEDY and judge.statistics(T0).silent_s is None
    now_ns = fill(judge, 5)
    assert judge.statistics(now_ns + 1_000 * MS).healthy
    late = judge.statistics(now_ns + 1_001 * MS)
    assert not late.healthy and late.remedy == NO_FRAMES_REMEDY and late.silent_s == pytest.approx(1.001)


@pytest.mark.parametrize("reason", [FrameReason.ZERO_STAMP, FrameReason.FUTURE, FrameReason.STALE, FrameReason.REPEATED])
def test_refused_frames_name_their_remedy(reason: FrameReason) -> None:
    judge = FrameJudge()
    assert judge.judge(T0, T0).usable
    stamps = {FrameReason.ZERO_STAMP: 0, FrameReason.FUTURE: T0 + 10**10, FrameReason.STALE: T0 + 1, FrameReason.REPEATED: T0}
    now_ns = T0 + 900 * MS
    assert judge.judge(stamps[reason], now_ns).reason is reason
    seen = judge.statistics(now_ns)
    assert seen.refused == {reason: 1} and seen.remedy == REMEDIES[reason] and not seen.healthy


def test_a_single_bad_frame_is_forgotten_after_two_good_seconds() -> None:
    judge = FrameJudge()
    judge.judge(0, T0)
    assert not judge.statistics(fill(judge, 10, start_ns=T0 + MS)).healthy  # 10 frames are 0.9 s
    seen = judge.statistics(fill(judge, 15, start_ns=T0 + 1000 * MS))
    assert seen.healthy and seen.refused == {FrameReason.ZERO_STAMP: 1}


def test_the_newest_trouble_is_the_one_that_is_named() -> None:
    judge = FrameJudge()
    for k in range(20):
        judge.judge(T0 + k * 100 * MS + 5_000 * MS, T0 + k * 100 * MS)
    now_ns = T0 + 2_000 * MS
    judge.judge(now_ns - 5_000 * MS, now_ns)
    assert judge.statistics(now_ns).remedy == REMEDIES[FrameReason.STALE]


@pytest.mark.parametrize("kept", [0.19, 0.35, 0.5, 0.7, 0.9, 1.0])
def test_loss_is_estimated_from_stamps_alone(kept: float) -> None:
    """The measured case: of 240 raw frames at 30 Hz, 45 came through best effort."""
    rng = np.random.default_rng(4)
    jitter_ns = rng.normal(0, 2 * MS, 400).astype(np.int64)  # 6 % of the period
    stamps = T0 + np.arange(400) * (1000 * MS // 30) + jitter_ns
    came = rng.random(400) < kept
    spacing_s, lost = estimate_loss(stamps[came].tolist())
    assert spacing_s is not None and lost == pytest.approx(1 - came[came.argmax():].mean(), abs=0.05)


@pytest.mark.parametrize(("compressed", "remedy"), [(False, LOSS_REMEDY), (True, COMPRESSED_LOSS_REMEDY)])
def test_loss_names_its_remedy(compressed: bool, remedy: str) -> None:
    judge = FrameJudge(FrameLimits(compressed=compressed))
    rng = np.random.default_rng(5)
    for k in range(240):
        if rng.random() < 0.3:
            now_ns = T0 + k * 33 * MS
            judge.judge(now_ns, now_ns, noise(k))
    assert judge.statistics(now_ns).remedy == remedy
    assert "Fast DDS" in LOSS_REMEDY and "compressed" in LOSS_REMEDY


def test_a_camera_that_was_away_is_not_called_lossy() -> None:
    judge = FrameJudge()
    fill(judge, 20)
    now_ns = fill(judge, 5, start_ns=T0 + 60_000 * MS)
    seen = judge.statistics(now_ns)
    assert seen.healthy and seen.lost_fraction == 0.0 and seen.rate_hz == pytest.approx(10.0)


def test_too_few_frames_say_nothing() -> None:
    assert estimate_loss([T0, T0 + 1]) == (None, None)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2 * 10**9), st.integers(0, 10**9)), max_size=30))
def test_used_stamps_rise_while_the_clock_does_and_counts_add_up(frames: list[tuple[int, int]]) -> None:
    judge = FrameJudge()
    now_ns, used = T0, []
    for stamp_offset, wait_ns in frames:
        now_ns += wait_ns
        verdict = judge.judge(T0 + stamp_offset, now_ns)
        if verdict.usable:
            used.append(verdict.stamp_ns)
            assert -0.1 <= verdict.age_s <= 0.6
    assert used == sorted(set(used))
    seen = judge.statistics(now_ns)
    assert seen.received == len(frames) == len(used) + sum(seen.refused.values())


@pytest.mark.parametrize("wrong", [{"stamp_source": "camera"}, {"max_age_s": 0.0}, {"max_age_s": float("nan")}, {"window": 1},
                                   {"loss_to_warn": 0.0}, {"frozen_after": -1}, {"max_ahead_s": -1.0}])
def test_limits_check_themselves(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        FrameLimits(**wrong)  # type: ignore[arg-type]
