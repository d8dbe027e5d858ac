"""Draw docs/handoff.png: a human takes over in the middle of a pick, leads the arm away and hands back; the policy finishes.

`python docs/handoff.py [--checkpoint default] [--seed 5] [--output docs/handoff.png]`

It runs the real nodes in front of the simulated arm, which takes about 20 s. A test does the same with the scripted expert.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from openvla_ros.ros.handoff_trial import SWITCHES, HandoffRun, run_handoff
from openvla_ros.ros.simulation_stage import Stage
from openvla_ros.ros.simulation_trial import EXPERT, policy_part

ATTEMPTS = 5
"""On a busy computer the clock may stall, which puts the driver into HOLD; such a run is not worth a picture."""

COLOURS = {"HOLD": "#b8b8b8", "POLICY": "#2b6cb0", "HUMAN": "#dd6b20", "STOPPED": "#c53030"}


def draw(run: HandoffRun, path: Path) -> None:
    """Four pictures of the overview camera, below them the tool from above and its height over time, coloured by who drove."""
    figure = plt.figure(figsize=(12, 6.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.0, 1.5))
    for axes, name in zip(top.subplots(1, len(SWITCHES)), SWITCHES, strict=True):
        axes.imshow(run.frames[name])
        axes.set_title(f"{name}, {run.switches_s[name] - run.switches_s['start']:.1f} s", fontsize=10)
        axes.set_axis_off()
    times_s = run.times_s - run.switches_s["start"]
    drivers = [run.driver_at(time_s) for time_s in run.times_s]
    above, height = bottom.subplots(1, 2)
    for axes, across, up in ((above, 100.0 * run.tool_m[:, 1], 100.0 * run.tool_m[:, 0]), (height, times_s, 100.0 * run.tool_m[:, 2])):
        for name in dict.fromkeys(drivers):
            mine = [driver == name for driver in drivers]
            axes.scatter(across[mine], up[mine], s=5, color=COLOURS[name], label=name)
        axes.grid(alpha=0.3)
    above.set(xlabel="y [cm], to the arm's left", ylabel="x [cm], away from the arm", title="the tool from above")
    above.set_aspect("equal", adjustable="datalim")
    above.invert_xaxis()
    above.legend(loc="best", markerscale=3)
    height.set(xlabel="simulated time [s]", ylabel="height of the tool [cm]", title=f'"{run.task.instruction}"')
    for name in SWITCHES[1:3]:
        height.axvline(run.switches_s[name] - run.switches_s["start"], color="black", linewidth=0.8, linestyle=":")
    gripper = height.twinx()
    gripper.plot(times_s, run.openings, color="#718096", linewidth=1.0)
    gripper.set(ylim=(0.0, 4.0), yticks=[0.0, 1.0], yticklabels=["closed", "open"])
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Run it and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="default", help="as policy_node takes it, or 'expert'")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("handoff.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stage(
            policy_part(arguments.checkpoint, 1, 0.6), Path(folder), lifecycle=arguments.checkpoint != EXPERT) as stage:
        for _ in range(ATTEMPTS):
            run = run_handoff(stage, arguments.seed)
            if run.success and not run.disturbed:
                break
    draw(run, arguments.output)
    print(f"{'picked' if run.success else 'NOT picked'}; {arguments.output}")


if __name__ == "__main__":
    main()
