"""The numbers of the default policy's training: a fixed amount of work, so that the same command makes the same policy anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from openvla_ros.training.default_policy.collect import Driving
from openvla_ros.training.loop import Schedule


@dataclass(frozen=True)
class Round:
    """At update `step` the policy as it is then drives, and `frames` more frames are labelled (DAgger)."""

    step: int
    frames: int


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is learned, besides the seed.

    The first `picture_steps` updates ask the picture's questions only, at a third of the cost; then come the updates of `schedule`
    with instructions, and those of each `polish`, which begins again at a low rate. picture_frames, batch_frames: per update of either
    kind, all processes together; instructions: per frame. From update `focus_step` on, frames and tasks of the grasp and of the plate
    are drawn more often, with focus_instructions per frame. evaluate_every: updates between evaluations in closed loop, with
    evaluate_episodes of each task; trial_episodes: of each task in the card.
    """

    name: str
    demonstrations: int
    part: int  # frames per file and process
    picture_steps: int
    picture_rate: float
    picture_frames: int
    schedule: Schedule
    polish: tuple[Schedule, ...]
    batch_frames: int
    instructions: int
    rounds: tuple[Round, ...]
    focus_step: int
    focus_instructions: int
    evaluate_every: int
    evaluate_episodes: int
    trial_episodes: int
    save_every: int = 100
    expert_driving: Driving = field(default_factory=lambda: Driving(episode_steps=20, head_start_steps=30, kinds=(0.2, 0.4, 0.4)))
    policy_driving: Driving = field(default_factory=lambda: Driving(episode_steps=50, noisy_share=0.15, fingers_share=0.01, done_share=0.5,
                                                                    kinds=(0.15, 0.35, 0.5)))
    worlds: int = 12  # that the policy drives at once, per process

    @property
    def last_step(self) -> int:
        """Updates in all."""
        return self.picture_steps + self.schedule.steps + sum(polish.steps for polish in self.polish)

    def rate(self, step: int) -> float:
        """Learning rate of an update, from 0."""
        if step < self.picture_steps:
            return Schedule(self.picture_rate, self.picture_steps, min(50, self.picture_steps), 0.3, 0.3).rate(step)
        acting = step - self.picture_steps
        for schedule in (self.schedule, *self.polish[:-1]):
            if acting < schedule.steps:
                return schedule.rate(acting)
            acting -= schedule.steps
        return self.polish[-1].rate(acting)


FULL = Recipe(
    name="full", demonstrations=20_000, part=5_000, picture_steps=600, picture_rate=1.5e-3, picture_frames=48,
    schedule=Schedule(peak=1.2e-3, steps=3_800, warmup_steps=100, decay_share=0.4, floor_share=0.25),
    polish=(Schedule(peak=4e-4, steps=1_400, warmup_steps=30, decay_share=1.0, floor_share=0.03),
            Schedule(peak=3e-4, steps=500, warmup_steps=30, decay_share=1.0, floor_share=0.03)), batch_frames=32, instructions=6,
    rounds=(Round(1_700, 4_000), Round(2_500, 4_000), Round(3_300, 4_000), Round(4_000, 4_000), Round(4_500, 4_000), Round(5_000, 4_000),
            Round(5_800, 3_000)),
    focus_step=2_600, focus_instructions=4, evaluate_every=1_400, evaluate_episodes=30, trial_episodes=200)

SMOKE = Recipe(
    name="smoke", demonstrations=800, part=400, picture_steps=60, picture_rate=1.5e-3, picture_frames=24,
    schedule=Schedule(peak=1.2e-3, steps=100, warmup_steps=20, decay_share=0.35, floor_share=0.1),
    polish=(Schedule(peak=4e-4, steps=20, warmup_steps=2, decay_share=1.0, floor_share=0.1),),
    batch_frames=24, instructions=6, rounds=(Round(120, 80),), focus_step=140, focus_instructions=4, evaluate_every=60,
    evaluate_episodes=2, trial_episodes=2, save_every=20, worlds=4)

RECIPES = {recipe.name: recipe for recipe in (FULL, SMOKE)}
