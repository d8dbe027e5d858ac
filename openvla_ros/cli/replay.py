"""`openvla-ros replay`: a policy over recordings, offline; a report of what it would have done, and whether that is as expected."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openvla_ros.bags.command import LATENCY_S
from openvla_ros.bags.expect import Tolerance
from openvla_ros.bags.frames import select
from openvla_ros.bags.read import Recording
from openvla_ros.bags.report import write_whole
from openvla_ros.cli.replay_live import finish, replay_live
from openvla_ros.cli.replay_pages import refuse_without_viewer, show_files, write_pages
from openvla_ros.cli.replay_tables import show, show_all, show_comparison
from openvla_ros.errors import BagError, ConfigurationError
from openvla_ros.policy.catalogue import SCRIPTED, PolicySettings, read_profile
from openvla_ros.regression import against as versus
from openvla_ros.regression.job import DIFFERS, FAILED, REPLAY_ROBOT, Job, Result, check, run_job
from openvla_ros.regression.job import as_json as plain_result
from openvla_ros.regression.junit import write_junit
from openvla_ros.regression.suite import read_suite
from openvla_ros.regression.workers import LoadedPolicy, run_all, unnamed_twice

SUMMARY = "summary.json"


def main(
    bags: Annotated[list[Path] | None, typer.Argument(help="rosbag2 folders, .mcap or .db3 files.", show_default=False)] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint folder, Hugging Face hub name, 'default' or 'scripted'.")] = "",
    unnorm_key: Annotated[str, typer.Option(help="Action statistics to use; empty: the checkpoint's only ones, else the profile's.")] = "",
    output: Annotated[Path | None, typer.Option(help="Folder for reports and pictures.  \\[default: replay-<bag name>, for several "
                                                "replay-output]", show_default=False)] = None,
    expect: Annotated[Path | None, typer.Option(help="Compare with this file of expected actions (for several bags a folder with "
                                                "<bag name>.json).")] = None,
    write_expected: Annotated[Path | None, typer.Option(help="Write the expected actions to this file (several bags: a folder).")] = None,
    suite: Annotated[Path | None, typer.Option(help="Run the files *.replay.yaml of this folder instead of bags.")] = None,
    update: Annotated[bool, typer.Option("--update", help="With --suite: write the expected actions of every file anew.")] = False,
    against: Annotated[str, typer.Option(help="Compare with another checkpoint, or with changed settings: dtype=float32, or "
                                         "quantization=nf4,resize=direct.")] = "",
    through: Annotated[str, typer.Option(help="policy, or command: run the pilot (safety, handoff) too.")] = "policy",
    robot: Annotated[str, typer.Option(help="Robot profile for --through command.")] = REPLAY_ROBOT,
    latency_s: Annotated[float, typer.Option(help="Assumed time from a picture to its answer, for --through command \\[s].")] = LATENCY_S,
    live: Annotated[bool, typer.Option("--live", help="Play the bag to the real nodes over DDS (own ROS domain, this computer only) and "
                                       "compare what they say with the offline answers, or with --expect.")] = False,
    attach: Annotated[bool, typer.Option("--attach", help="As --live, but only listen to nodes and a player that others started.")] = False,
    rate: Annotated[float, typer.Option(min=0.05, max=20.0, help="Speed of the recording, for --live.")] = 1.0,
    margin: Annotated[float | None, typer.Option(help="Ids must be equal where the recorded margin exceeds this.  \\[default: 0.01 for "
                                                 "float32, 1.0 for bfloat16]", show_default=False)] = None,
    tolerance_m: Annotated[float, typer.Option(help="Largest difference of a translation in a frame whose ids flipped \\[m].")] = 0.01,
    tolerance_rad: Annotated[float, typer.Option(help="The same for a rotation \\[rad].")] = 0.05,
    tolerance_gripper: Annotated[float, typer.Option(help="The same for the gripper, 0..1.")] = 1.0,
    max_flips: Annotated[float, typer.Option(help="Largest share of frames whose ids may flip below the margin bound, 0..1.")] = 0.1,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit file for continuous integration.")] = None,
    rerun: Annotated[Path | None, typer.Option(help="Write the run for the Rerun viewer to this .rrd file.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes for several bags; each loads the model.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Frames that the model looks at together.")] = 1,
    instruction: Annotated[str, typer.Option(help="Use this instruction instead of the recorded ones.")] = "",
    image_topic: Annotated[str, typer.Option(help="Camera topic, where the recording has several.")] = "",
    instruction_topic: Annotated[str, typer.Option(help="Instruction topic, where the recording has several.")] = "",
    action_topic: Annotated[str, typer.Option(help="Topic of the recorded actions (Float64MultiArray, or TwistStamped deltas).")] = "",
    stride: Annotated[int, typer.Option(min=1, help="Take every so many-th frame.")] = 1,
    limit: Annotated[int, typer.Option(min=0, help="End after so many frames; 0 for all.")] = 0,
    profile: Annotated[str, typer.Option("--policy", help="Policy profile: a name in config/policies or a .yaml file. It sets the image "
                                         "path, as in policy_node; the options below override it.")] = "openvla-7b",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "",
    quantization: Annotated[str, typer.Option(help="none, int8, nf4 or w8a8.")] = "",
    attention: Annotated[str, typer.Option(help="sdpa or flash.")] = "",
    resize: Annotated[str, typer.Option(help="direct (as the released server), or bridge (as the Bridge evaluation).")] = "",
    centre_crop: Annotated[bool | None, typer.Option(help="For models fine-tuned with random crops.", show_default=False)] = None,
    rotate_180: Annotated[bool | None, typer.Option(help="Turn every frame by 180 degrees first.", show_default=False)] = None,
    prompt_style: Annotated[str, typer.Option(help="auto, openvla or v01.")] = "",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of torch; 0 for its own choice.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object (without the frames; those are in the files).")] = False,
) -> int:
    """Run a policy over recordings, offline, and compare with the recorded or with the expected actions.

    Writes a JSON report and a picture for each. No ROS installation is needed; nothing is published.
    Exit code: 0 good, 1 not as expected, 2 bad input.
    """
    given = {"unnorm_key": unnorm_key, "device": device, "dtype": dtype, "quantization": quantization, "attention": attention,
             "resize": resize, "prompt_style": prompt_style, "threads": threads or "", "checkpoint": checkpoint}
    turns = {name: value for name, value in (("centre_crop", centre_crop), ("rotate_180", rotate_180)) if value is not None}
    overrides: dict[str, Any] = {**{name: value for name, value in given.items() if value != ""}, **turns}
    bags, unread = bags or [], list[Result]()
    check_choice(bags, suite, expect, write_expected, update, against)
    if suite is not None:
        folder = output or Path("replay-output")
        jobs, unread = read_suite(suite, folder, overrides)
        if update:
            jobs = [dataclasses.replace(job, write_expected=job.expect, expect=None) for job in jobs]
        elif output is not None:
            jobs = [dataclasses.replace(job, report=True) for job in jobs]
    else:
        if attach and expect and not checkpoint:
            checkpoint = overrides["checkpoint"] = SCRIPTED  # nothing is computed here: the file says what is expected
        if not checkpoint:
            raise ConfigurationError("replay needs a policy: --checkpoint with a folder, a Hugging Face hub name, 'default' or 'scripted'.")
        settings = read_profile(profile, **overrides)
        tolerance = Tolerance(margin, (*(tolerance_m,) * 3, *(tolerance_rad,) * 3, tolerance_gripper), max_flips)
        folder = output or (Path(f"replay-{name_of(bags[0])}") if len(bags) == 1 else Path("replay-output"))
        jobs = [Job(name_of(bag), bag, settings, folder if len(bags) == 1 else folder / name_of(bag), image_topic, instruction,
                    instruction_topic, action_topic, stride, limit, batch, file_for(expect, bag, bags, "--expect"),
                    file_for(write_expected, bag, bags, "--write-expected"), tolerance, through, robot, latency_s) for bag in bags]
    jobs = unnamed_twice(jobs)
    refuse_without_viewer(rerun)
    console = Console(stderr=True, quiet=as_json)
    if live or attach:
        if len(jobs) > 1 or suite is not None or against or junit or write_expected or through != "policy":
            raise ConfigurationError("--live takes one bag, without --suite, --against, --junit, --write-expected and --through.")
        if rerun is not None:
            raise ConfigurationError("--rerun shows what was computed offline: leave out --live.")
        return finish(*replay_live(jobs[0], attach, rate), folder, as_json)
    if against:
        return run_against(jobs, versus.other_settings(jobs[0].policy, against), workers, folder, console, as_json, rerun)
    if len(jobs) == 1 and suite is None:
        result = run_one(jobs[0], console, as_json)
        if junit is not None:
            write_junit([result], junit)
        files = write_pages(jobs, [result], folder, rerun)
        if as_json:
            print(json.dumps({**plain_result(result), **files}))
        else:
            show(result)
            show_files(files)
        return int(result.status == DIFFERS)
    judged = run_many(jobs, workers, console)
    results = [*judged, *unread]
    summary: dict[str, Any] = {
        "good": sum(result.status not in (DIFFERS, FAILED) for result in results),
        "differs": sum(result.status == DIFFERS for result in results),
        "failed": sum(result.status == FAILED for result in results), "bags": [plain_result(result) for result in results]}
    write_summary(summary, folder)
    if junit is not None:
        write_junit(results, junit)
    files = write_pages(jobs, judged, folder, rerun) if jobs and (rerun is not None or any(job.report for job in jobs)) else {}
    if as_json:
        print(json.dumps({**summary, "summary": str(folder / SUMMARY), **files}))
    else:
        show_all(results, folder / SUMMARY)
        show_files(files)
    return 2 if summary["failed"] else int(summary["differs"] > 0)


def check_choice(bags: Sequence[Path], suite: Path | None, expect: Path | None, write_expected: Path | None, update: bool,
                 against: str) -> None:
    """Options that make no sense together. Raises ConfigurationError."""
    if suite is not None and (bags or expect or write_expected or against):
        raise ConfigurationError("--suite says itself which bags are compared with what. Leave out bags, --expect, --write-expected "
                                 "(use --update) and --against.")
    if suite is None and not bags:
        raise ConfigurationError("there is nothing to replay. Name a rosbag2 folder, a .mcap or a .db3 file, or a folder with --suite.")
    if update and suite is None:
        raise ConfigurationError("--update belongs to --suite. For bags: --write-expected FILE.")
    if against and (expect or write_expected):
        raise ConfigurationError("--against compares two policies with each other, so it takes no --expect and no --write-expected.")


def name_of(bag: Path) -> str:
    """A bag's folder or file name."""
    return bag.resolve().name


def file_for(place: Path | None, bag: Path, bags: Sequence[Path], option: str) -> Path | None:
    """The file of expected actions that belongs to a bag: the one that was named, or one in the folder that was."""
    if place is None or (len(bags) == 1 and not place.is_dir()):
        return place
    if place.suffix == ".json" and not place.is_dir():
        raise ConfigurationError(f"{option} names one file, but there are {len(bags)} bags. Name a folder; it holds <bag name>.json.")
    return place / f"{name_of(bag)}.json"


def run_one(job: Job, console: Console, quiet: bool) -> Result:
    """One recording here, with a bar that counts frames. Raises what is wrong with it."""
    check(job)
    loaded = LoadedPolicy(False if quiet else None)
    try:
        policy = loaded.get(job.policy)
        with Recording(job.bag) as recording:
            images = select(recording, job.image_topic, job.instruction, job.instruction_topic, job.action_topic).image.count
        expected = -(-images // job.stride)
        with Progress(TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("replay", total=min(job.limit, expected) if job.limit else expected)
            result = run_job(job, policy, lambda frame: bar.advance(task))
            bar.update(task, total=len(result.replay.frames) if result.replay else 0)
        return result
    finally:
        loaded.close()


def run_many(jobs: Sequence[Job], workers: int, console: Console) -> list[Result]:
    """Several recordings, with a bar that counts them. What is wrong with one is in its result."""
    with Progress(TextColumn("recordings"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("recordings", total=len(jobs))
        return run_all(jobs, workers, lambda result: bar.advance(task))


def run_against(jobs: Sequence[Job], other: PolicySettings, workers: int, folder: Path, console: Console, quiet: bool,
                rerun: Path | None = None) -> int:
    """Each recording through two policies. Exit code 2 when one could not be compared."""
    results = run_many(versus.in_pairs(jobs, other), workers, console)
    matches, whole = versus.match(jobs, results, other), versus.together(jobs, results, other)
    plain = {"together": None if whole is None else versus.as_json(whole),
             "bags": [{"name": match.job.name, **({"error": match.error} if match.comparison is None else versus.as_json(match.comparison))}
                      for match in matches]}
    write_summary(plain, folder)
    bases, others = results[:len(jobs)], results[len(jobs):]
    name = next((match.comparison.other for match in matches if match.comparison is not None), "the other policy")
    files = write_pages(jobs, bases, folder, rerun, others, name)
    if quiet:
        print(json.dumps({**plain, "summary": str(folder / SUMMARY), **files}))
    else:
        show_comparison(matches, whole, folder / SUMMARY)
        show_files(files)
    return 2 if any(match.comparison is None for match in matches) else 0


def write_summary(plain: dict[str, Any], folder: Path) -> None:
    """One file for all recordings. Raises BagError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
        write_whole(folder / SUMMARY, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise BagError(f"the summary cannot be written to {folder}: {error}. Choose another --output.") from error
