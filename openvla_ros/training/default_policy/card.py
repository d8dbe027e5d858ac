"""The card of the default policy: README.md and plots that go with the checkpoint, written from what was measured."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from openvla_ros.policy.openvla.model import ModelShape
from openvla_ros.simulation.task import HELD_OUT_PHRASES, KINDS, PHRASES
from openvla_ros.training.default_policy.batches import KEY, LARGEST_STEP_M
from openvla_ros.training.default_policy.recipe import Recipe
from openvla_ros.training.default_policy.trial import NO_TASK, TRIAL_SEEDS, UNKNOWN_WORDS

TEMPLATE = """# The default policy of openvla_ros

A small checkpoint of OpenVLA's architecture ({parameters:.2f} million stored parameters, float16) in the published layout. It follows
typed instructions with the simulated WidowX of this package: one RGB picture of {side}x{side} pixels and the instruction go in, seven
action tokens come out. It has no proprioception and no memory. It is loaded and run by the same code as openvla-7b.

**What it is not.** It was trained from nothing on one synthetic scene. It says nothing about how good the 7B model is. It does not
transfer to a real camera, to another renderer, to another view, or to other objects: do not put it in charge of a real arm.
All its data come from this package's simulation; nothing of others is in it.

## What it was measured to do

Success rate with 95 % interval (Wilson), on layouts that neither training nor its supervision saw (seeds {first_seed} and up), in
process, pictures 0.08 s old when a step begins, greedy decoding, float32 on a CPU.

{results}

"wrong" counts the episodes in which another block was lifted or reached first.

### Controls and limits

{controls}

- *told another colour*: the instruction names another block that is there. The first number is how often the block of the layout's task
  was dealt with (it should not be), the second how often the told one was.
- *grey picture*: what succeeds then was not seen.
- *unknown words*: {unknown}. Their letters are tokens that it never saw. Nothing crashes; what it does is in the table.
- *no task at all*: {nothing}. It moves all the same: a model of this kind always answers with an action.
- Steps without an action (faults) in all of these together: {faults}.

In process again: `openvla-ros sim-eval --checkpoint DIR --episodes {episodes} --seed {first_seed}` (`--instruction-control other-colour`,
`--image-control blank`, `--phrases held-out`; `--ros` runs it through the real nodes).

## Tasks and words

{phrases}

Colours: red, green, blue, yellow; three of the four blocks are there. Phrases it never saw in training: {held_out}.

## Recipe

Made by `openvla-ros train-default{options}`: seed {seed}, {workers} processes of one thread, {updates} updates. {time}

- **Data**: {frames} frames of {side}x{side} pixels from the ray-cast camera: {demonstrations} while the scripted expert drives, with
  noise on {noisy:.0%} of its steps, changes of task and pictures {low_ms:.0f} to {high_ms:.0f} ms old; {driven} while the policy in
  training drives ({rounds} DAgger rounds). Layouts, places, turns and the start of the tool are random. Labels are the expert's, for
  every present colour and kind of task at once, because it is a pure function of the state.
- **Model**: two ViTs (width {tower_width}, {blocks} blocks used, patches of {patch} pixels), fused projector, Llama decoder (width
  {width}, {layers} layers, feed-forward {mlp}); own tokenizer in the structure of Llama's. Prompt, bins, normalisation and image path
  are those of inference. Statistics `{key}`: translations {limit_mm:.0f} mm to both sides, rotations without range (the expert never
  turns the hand), gripper as it is.
- **Losses**: Gaussian soft labels over the 256 bins (4 bins wide; {bin_mm:.2f} mm per bin) and half the distance of the expected bin
  / 20; the gripper counts twice. In training only: where each block, plate and tool is (patch, offset, position), where tool and goal
  of the instruction are, and whether a block is held, whether it is the named one, and whether the hand is over the plate.
- **Steps**: {picture_steps} updates of the picture's questions alone, {picture_frames} frames each, then {steps} of {batch} frames with
  {instructions} instructions per frame; from update {focus_step} on {focus_instructions}, and frames in which a block is aligned, being
  gripped, just gripped or over the plate are drawn two to seven times as often. AdamW, peak rate {peak:g}, level, then a cosine
  down over the last {decay:.0%} to {floor:.0%}; then {polish}. Averaged weights (0.995).
  Matrix products in bfloat16, weights in float32.

{remarks}
## Training log

![error of the action tokens](training.png)

![closed loop during training](closed_loop.png)

{history}

Whole log: `training_log.jsonl`. Everything that was evaluated: `evaluation.json`.
"""


def write_card(recipe: Recipe, seed: int, workers: int, shape: ModelShape, parameters: int, log: Sequence[Mapping[str, Any]],
               trials: Mapping[str, Mapping[str, Mapping[str, Any]]], frames: int, remarks: str = "") -> str:
    """README.md. log: of the run. trials: what `trial.merge_shares` gave. remarks: what else a reader must know about this file."""
    main, tower, decoder, driving = trials["canonical instructions"], shape.towers[0], shape.decoder, recipe.expert_driving
    driven = sum(turn.frames for turn in recipe.rounds)
    last = log[-1]
    minutes, processor = last["wall_s"] / 60.0, last["cpu_s"] / 60.0
    spent = (f"It took {minutes:.0f} min; of processor time it took {processor:.0f} min, so {processor / workers:.0f} min on {workers} "
             "free cores. The evaluation above comes on top.")
    return TEMPLATE.format(
        parameters=parameters / 1e6, side=tower.side, first_seed=TRIAL_SEEDS.start, results=result_table(trials),
        controls=control_table(trials), unknown=quoted(UNKNOWN_WORDS), nothing=quoted(NO_TASK), episodes=main["reach"]["episodes"],
        faults=sum(row["faults"] for kinds in trials.values() for row in kinds.values()),
        phrases="\n".join(f"- {kind}: {quoted({kind: PHRASES[kind]})}" for kind in KINDS), held_out=quoted(HELD_OUT_PHRASES),
        options="" if recipe.name == "full" else f" --{recipe.name}", seed=seed, workers=workers, updates=recipe.last_step, time=spent,
        frames=frames, demonstrations=frames - driven, noisy=driving.noisy_share, low_ms=1e3 * driving.latency_s[0],
        high_ms=1e3 * driving.latency_s[1], driven=driven, rounds=len(recipe.rounds), tower_width=tower.width, blocks=tower.depth - 1,
        patch=tower.patch, width=decoder.hidden_size, layers=decoder.num_hidden_layers, mlp=decoder.intermediate_size, key=KEY,
        limit_mm=1e3 * LARGEST_STEP_M, bin_mm=1e3 * 2 * LARGEST_STEP_M / 255, picture_steps=recipe.picture_steps,
        picture_frames=recipe.picture_frames,
        polish=", and ".join(f"{polish.steps} updates more from {polish.peak:g} down" for polish in recipe.polish),
        focus_step=recipe.focus_step, focus_instructions=recipe.focus_instructions, steps=recipe.schedule.steps,
        instructions=recipe.instructions, batch=recipe.batch_frames, peak=recipe.schedule.peak,
        decay=recipe.schedule.decay_share, floor=recipe.schedule.floor_share, remarks=f"{remarks}\n" if remarks else "",
        history=history_table(log))


def quoted(phrases: Mapping[str, Sequence[str]]) -> str:
    """Templates for a reader."""
    texts = dict.fromkeys(template.replace("{colour}", "X") for templates in phrases.values() for template in templates)
    return ", ".join(f'"{text}"' for text in texts)


def percent(row: Mapping[str, Any], told: bool = False) -> str:
    """A rate with its interval."""
    low, high = row["told_interval_95" if told else "interval_95"]
    count = row["told_successes" if told else "successes"]
    return f"{count}/{row['episodes']} = {count / row['episodes']:.1%} ({low:.1%} to {high:.1%})"


def result_table(trials: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Success of the policy and of who it is compared with."""
    names = [name for name in trials if name not in CONTROLS]
    lines = ["| | reach | pick | place |", "| --- | --- | --- | --- |"]
    for name in names:
        cells = [f"{percent(trials[name][kind])}; wrong {trials[name][kind]['wrong']}" for kind in KINDS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


CONTROLS = ("told another colour", "grey picture", "unknown words", "no task at all")


def control_table(trials: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """What happens when something is not as it should be."""
    lines = ["| | reach | pick | place |", "| --- | --- | --- | --- |"]
    for name in CONTROLS:
        cells = [percent(trials[name][kind]) + (f"; the told one {percent(trials[name][kind], told=True)}" if name == CONTROLS[0] else
                                                f"; wrong {trials[name][kind]['wrong']}") for kind in KINDS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def history_table(log: Sequence[Mapping[str, Any]]) -> str:
    """Closed loop during training, with the error of the tokens at that time."""
    lines = ["| update | minutes | error dx, dy, dz [bins] | gripper wrong | reach | pick | place |", "| --- " * 7 + "|"]
    newest: Mapping[str, Any] = {}
    for record in log:
        if "l1_bins" in record:
            newest = record
        if "closed_loop" in record and newest:
            rates = [f"{record['closed_loop'][kind]['successes']}/{record['closed_loop'][kind]['episodes']}" for kind in KINDS]
            error = ", ".join(f"{newest[name]:.1f}" for name in ("dx_bins", "dy_bins", "dz_bins"))
            cells = [str(record["step"]), f"{record['wall_s'] / 60:.0f}", error, f"{newest['gripper_error']:.1%}", *rates]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_training(log: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: error of each translation token over the updates."""
    from matplotlib.figure import Figure  # late: it takes a second

    figure = Figure(figsize=(9, 4.5), dpi=100, layout="constrained", facecolor="white")
    panel = figure.subplots()
    records = [record for record in log if "l1_bins" in record]
    for name, colour in (("dx_bins", "#c23b22"), ("dy_bins", "#2f7d32"), ("dz_bins", "#1f4ea8")):
        panel.plot([record["step"] for record in records], [record[name] for record in records], color=colour,
                   label=name.removesuffix("_bins"))
    panel.set(xlabel="update", ylabel=f"mean error of the token [bins of {2e3 * LARGEST_STEP_M / 255:.2f} mm]", yscale="log",
              title="Training: error of the chosen translation tokens, frames with noise included")
    panel.grid(alpha=0.3, which="both")
    panel.legend()
    return render(figure)


def plot_closed_loop(log: Sequence[Mapping[str, Any]], trials: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> bytes:
    """PNG: success rates during training, and those of the finished policy with their intervals at the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), dpi=100, layout="constrained", facecolor="white")
    panel = figure.subplots()
    records = [record for record in log if "closed_loop" in record]
    last = max(record["step"] for record in log)
    for offset, (kind, colour) in enumerate(zip(KINDS, ("#1f4ea8", "#c23b22", "#2f7d32"), strict=True)):
        rates = [record["closed_loop"][kind]["successes"] / record["closed_loop"][kind]["episodes"] for record in records]
        panel.plot([record["step"] for record in records], rates, "o-", color=colour, label=kind)
        row = trials["canonical instructions"][kind]
        low, high = row["interval_95"]
        panel.errorbar([last * (1.03 + 0.015 * offset)], [row["rate"]], [[max(0.0, row["rate"] - low)], [max(0.0, high - row["rate"])]],
                       fmt="s", color=colour, capsize=3)
    panel.set(xlabel="update (squares: the finished policy on fresh layouts, 95 % interval)", ylabel="success rate", ylim=(-0.03, 1.03),
              title="Closed loop, greedy, layouts that training never draws")
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")
    return render(figure)


def render(figure: Any) -> bytes:
    """PNG bytes of a figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
