from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from openvla_ros.errors import TrainingError
from openvla_ros.training.loop import Schedule, Trainer, write_whole

SCHEDULE = Schedule(peak=0.1, steps=100, warmup_steps=10, decay_share=0.4, floor_share=0.1)


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [SCHEDULE.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01) and rates[9] == pytest.approx(0.1)
    assert rates[10:60] == [0.1] * 50
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert SCHEDULE.rate(80) == pytest.approx(0.055) and SCHEDULE.rate(100) == pytest.approx(0.01)


def test_a_longer_level_part_changes_nothing_before_the_fall() -> None:
    longer = Schedule(peak=0.1, steps=200, warmup_steps=10, decay_share=0.2, floor_share=0.1)
    assert [longer.rate(step) for step in range(61)] == [SCHEDULE.rate(step) for step in range(61)]


def make_trainer(seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    return Trainer(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))


def loss_at(trainer: Trainer) -> Tensor:
    torch.manual_seed(trainer.step)
    inputs = torch.randn(16, 3)
    loss: Tensor = (trainer.network(inputs)[:, 0] - inputs.sum(dim=1)).square().mean()
    return loss


def learn(trainer: Trainer, until: int) -> float:
    loss = float("nan")
    while trainer.step < until:
        current = loss_at(trainer)
        loss = float(current.detach())
        trainer.update(current, 0.02)
    return loss


def test_it_learns_and_the_average_follows() -> None:
    trainer = make_trainer()
    first = float(loss_at(trainer).detach())
    assert learn(trainer, 300) < 0.1 * first
    for name, parameter in trainer.parameters.items():
        assert torch.allclose(trainer.average[name], parameter, atol=0.1)


def test_a_saved_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, first = make_trainer(), make_trainer()
    learn(whole, 20)
    learn(first, 12)
    first.save(tmp_path / "state", {"wall_s": 3.5})
    second = make_trainer(seed=1)
    assert second.load(tmp_path / "state") == {"wall_s": 3.5}
    assert second.step == 12
    learn(second, 20)
    for name, parameter in whole.parameters.items():
        assert torch.equal(second.parameters[name], parameter) and torch.equal(second.average[name], whole.average[name])


def test_a_foreign_or_damaged_state_is_refused(tmp_path: Path) -> None:
    Trainer(nn.Linear(2, 2)).save(tmp_path / "foreign", {})
    (tmp_path / "damaged").write_bytes(b"nothing")
    for name in ("foreign", "damaged"):
        with pytest.raises(TrainingError, match="not a state of this training"):
            make_trainer().load(tmp_path / name)


def test_a_gradient_that_is_not_finite_stops_and_moves_nothing() -> None:
    trainer = make_trainer()
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    with pytest.raises(TrainingError, match="diverged"):
        trainer.update(loss_at(trainer) * float("nan"), 0.01)
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.parameters.items())
    assert trainer.step == 0


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_whole(path, b"old")
    (tmp_path / ".state.unfinished").write_bytes(b"half of the n")  # what a kill leaves
    assert path.read_bytes() == b"old"
    write_whole(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["state"] and path.read_bytes() == b"new"
