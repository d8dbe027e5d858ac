"""`openvla-ros doctor`: look at everything the system stands on, and say what to do about what is not good.

Works on a machine without ROS, without torch and without a running system: what is missing is then said, not crashed on.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from openvla_ros.contract import Check
from openvla_ros.errors import OpenvlaRosError
from openvla_ros.policy.catalogue import DEFAULT, DTYPES, QUANTIZATIONS, default_checkpoint
from openvla_ros.policy.statistics import read_statistics
from openvla_ros.ros.transport import PROFILE_VARIABLES, image_profile
from openvla_ros.share import share_folder

PROBE_DEADLINE_S = 120.0
"""Longest time for an import; the first import of torch from a cold disk takes tens of seconds."""

TORCH_PROBE = """
import json, torch
from openvla_ros.policy.openvla.avx512 import describe
gpus = []
if torch.cuda.is_available():
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        gpus.append([torch.cuda.get_device_name(number), free, total])
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus, "kernels": describe()}))
"""

ROS_PROBE = """
import json, rclpy
from rclpy.utilities import get_rmw_implementation_identifier
print(json.dumps({"path": rclpy.__file__, "rmw": get_rmw_implementation_identifier()}))
"""

MESSAGES_PROBE = """
import json, pathlib, sys, openvla_msgs
from openvla_msgs.msg import ActionChunk, CommandReport
from openvla_msgs.srv import SetDriver
from openvla_msgs.action import ExecuteInstruction
for kind in (ActionChunk, CommandReport, SetDriver, ExecuteInstruction):
    kind.__import_type_support__()
copies = {str(pathlib.Path(entry, "openvla_msgs").resolve()) for entry in sys.path if pathlib.Path(entry, "openvla_msgs", "msg").is_dir()}
print(json.dumps({"path": openvla_msgs.__file__, "copies": sorted(copies)}))
"""

WEIGHT_BYTES = {"none/float32": 4.0, "none/bfloat16": 2.0, "int8/float32": 1.15, "int8/bfloat16": 1.15,
                "nf4/float32": 0.65, "nf4/bfloat16": 0.65, "w8a8/float32": 1.45, "w8a8/bfloat16": 1.15}
"""Bytes per weight in memory, by quantization/dtype; quantised ones include the layers that stay in 16 bits."""

OPTIONAL = {
    "bitsandbytes": "quantization int8 and nf4 need it: pip install 'openvla-ros[quantization]'",
    "flash_attn": "only attention 'flash' needs it; the default is torch's own kernel",
    "cv_bridge": "not needed: images are decoded without it, with the same result",
    "mujoco": "simulation_node, sim-eval and train-default need it: pip install 'openvla-ros[simulation]'",
    "rosbags": "play, replay and make-episode need it: pip install 'openvla-ros[bags]'",
}

GIB = 2**30


def main(
    checkpoint: Annotated[Path | None, typer.Option(help="Also look at this checkpoint folder, or 'default' (weights are not "
                                                          "loaded).")] = None,
    dtype: Annotated[str, typer.Option(help="Arithmetic that the memory estimate is for: " + ", ".join(DTYPES))] = "bfloat16",
    quantization: Annotated[str, typer.Option(help="Weight format of the estimate: " + ", ".join(QUANTIZATIONS))] = "none",
    image_topic: Annotated[str, typer.Option(help="Camera topic to look at; empty: image and image/compressed.")] = "",
    namespace: Annotated[str, typer.Option(help="Namespace of the nodes to look at.")] = "",
    seconds: Annotated[float, typer.Option(help="How long to listen to the running system [s].", min=0.5, max=600.0)] = 3.0,
    camera_overlay: Annotated[Path | None, typer.Option(
        help="Instead of the checks: blend the camera's picture with this frame of the dataset, to place the camera as there.")] = None,
    image: Annotated[Path | None, typer.Option(help="With --camera-overlay: take this picture, not the running camera.")] = None,
    bag: Annotated[Path | None, typer.Option(help="With --camera-overlay: take the first picture of this recording.")] = None,
    output: Annotated[Path, typer.Option(help="With --camera-overlay: the .png file to write.")] = Path("camera_overlay.png"),
    alpha: Annotated[float, typer.Option(help="With --camera-overlay: weight of the camera's picture.", min=0.0, max=1.0)] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Check Python, GPU, memory, ROS, messages, checkpoint and the running system; say what to do about each trouble."""
    if camera_overlay is not None:
        from openvla_ros.cli.camera_overlay import Source, place_camera

        return place_camera(camera_overlay, Source(image, bag, image_topic, namespace, seconds), output, alpha, as_json)
    if image is not None or bag is not None:
        raise typer.BadParameter("--image and --bag belong to --camera-overlay REFERENCE.")
    if dtype not in DTYPES or quantization not in QUANTIZATIONS:
        raise typer.BadParameter(f"dtype {dtype!r} must be one of {', '.join(DTYPES)} and quantization {quantization!r} one of "
                                 f"{', '.join(QUANTIZATIONS)}.")
    checks: list[Check] = []

    def take(found: Iterable[Check]) -> None:
        for check in found:
            checks.append(check)
            if not as_json:
                show(check)

    torch_found = probe(TORCH_PROBE)
    ros_found, messages_found = probe(ROS_PROBE), probe(MESSAGES_PROBE)
    take(machine_checks())
    take(torch_checks(torch_found))
    take(ros_checks(ros_found, messages_found, os.environ))
    take(optional_checks())
    take([config_check()])
    if checkpoint is not None:
        folder = default_checkpoint() if str(checkpoint) == DEFAULT else checkpoint
        take(checkpoint_checks(folder, WEIGHT_BYTES[f"{quantization}/{dtype}"], free_bytes(torch_found)))
    if isinstance(ros_found, str) or isinstance(messages_found, str):
        take([Check("running system", True, "not looked at, since ROS or openvla_msgs cannot be imported here", note=True)])
    else:
        if not as_json:
            typer.echo(f"   listening for {seconds:g} s ...")
        from openvla_ros.ros.graph import live_checks  # ROS is imported only where it is known to work
        take(live_checks(seconds, namespace, image_topic))
    if as_json:
        plain = [{"name": check.name, "passed": check.passed, "status": status(check), "detail": check.detail} for check in checks]
        print(json.dumps({"checks": plain, "ok": all(check.passed for check in checks)}))
    else:
        typer.echo("\n" + last_line(checks))
    return 0 if all(check.passed for check in checks) else 2


def status(check: Check) -> str:
    """"good"; "note": absent without harm so far, or worth knowing; "bad": must be mended."""
    return "bad" if not check.passed else "note" if check.note else "good"


def last_line(checks: Iterable[Check]) -> str:
    """How many of each kind, and the names of those that are not good; the bad ones first."""
    names: dict[str, list[str]] = {"bad": [], "note": [], "good": []}
    for check in checks:
        names[status(check)].append(check.name)
    parts = [f"{len(names['bad'])} bad: {', '.join(names['bad'])}"] if names["bad"] else []
    parts.append(f"{len(names['good'])} good")
    if names["note"]:
        parts.append(f"{len(names['note'])} note{'s' if len(names['note']) > 1 else ''} (absent, or worth knowing): "
                     + ", ".join(names["note"]))
    return "; ".join(parts)


def show(check: Check) -> None:
    """One line for people."""
    word, colour = {"good": ("good", typer.colors.GREEN), "note": ("note", typer.colors.YELLOW),
                    "bad": ("BAD ", typer.colors.RED)}[status(check)]
    typer.echo(typer.style(word, fg=colour) + f" {check.name}: {check.detail}")


def probe(code: str) -> dict[str, Any] | str:
    """What `code` prints as JSON, or in words why not. In a process of its own: a broken library may take its process with it."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_DEADLINE_S)
    except subprocess.TimeoutExpired:
        return f"the import took longer than {PROBE_DEADLINE_S:g} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return dict(json.loads(lines[-1]))
    complaint = done.stderr.strip().splitlines()
    return complaint[-1] if complaint else f"the import ended with exit code {done.returncode}"


def machine_checks() -> list[Check]:
    """Python, memory, disk, processor load."""
    version = ".".join(map(str, sys.version_info[:3]))
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.home() if Path.home().exists() else Path("/"))
    shared = Path("/dev/shm")
    checks = [
        Check("python", (3, 10) <= sys.version_info[:2] <= (3, 12),
              f"{version} at {sys.executable}" if (3, 10) <= sys.version_info[:2] <= (3, 12)
              else f"{version}: expected 3.10 to 3.12. Make the environment with one of them (make setup)."),
        Check("memory", memory.available > 2 * GIB,
              f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
              + ("" if memory.available > 2 * GIB else ". Close other programs; nothing but a tiny model fits.")),
        Check("disk", disk.free > 2 * GIB, f"{disk.free / GIB:.1f} GiB free in the home folder"
              + ("" if disk.free > 2 * GIB else ". Logs and recordings need room: free some.")),
    ]
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        checks.append(Check("shared memory", free > 64 * 2**20, f"{free / 2**20:.0f} MiB free in /dev/shm" + (
            "" if free > 64 * 2**20 else ". Images between processes need more: in a container use --shm-size=512m or --ipc=host; "
            "`fastdds shm clean` removes what killed processes left.")))
    return checks


def torch_checks(found: dict[str, Any] | str) -> list[Check]:
    """torch and GPUs; a machine that only runs command_node needs neither."""
    if isinstance(found, str):
        if importlib.util.find_spec("torch") is None:
            return [Check("torch", True, "not installed. policy_node needs it: pip install 'openvla-ros[policy]'; command_node does not.",
                          note=True)]
        return [Check("torch", False, f"is installed and cannot be imported: {found}. Install it again for this Python.")]
    checks = [Check("torch", True, f"{found['version']}, CUDA {found['cuda'] or 'not in this build'}")]
    if found["gpus"]:
        checks += [Check(f"gpu {number}", True, f"{name}: {free / GIB:.1f} of {total / GIB:.1f} GiB free")
                   for number, (name, free, total) in enumerate(found["gpus"])]
    elif shutil.which("nvidia-smi"):
        checks.append(Check("gpu", False, "nvidia-smi is here, but torch sees no GPU. Install a CUDA build of torch that fits the "
                            "driver (nvidia-smi shows its CUDA version), and check CUDA_VISIBLE_DEVICES."))
    else:
        checks.append(Check("gpu", True, "none: a 7B model takes many seconds per action on a CPU, small ones run well", note=True))
    if not found["gpus"]:
        checks.append(Check("cpu kernels", True, found["kernels"], note=found["kernels"].startswith("not used")))
    return checks


def ros_checks(found: dict[str, Any] | str, messages: dict[str, Any] | str, environment: Mapping[str, str]) -> list[Check]:
    """Where ROS comes from, its middleware, the interface package, and variables that decide who hears whom."""
    if isinstance(found, str):
        if importlib.util.find_spec("rclpy") is None:
            return [Check("ros", True, "no ROS here: predict, replay and a policy server work without. For nodes: make setup, or "
                          "source /opt/ros/<distro>/setup.bash.", note=True)]
        return [Check("ros", False, f"rclpy is installed and cannot be imported: {found}. If an apt ROS is sourced in a shell that "
                      "uses wheels, open a new shell; else make setup again.")]
    own = Path(found["path"]).is_relative_to(sys.prefix)
    sourced = [path for path in environment.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
               if path and (Path(path) / "share" / "rclpy").is_dir() and not Path(path).is_relative_to(sys.prefix)]
    kind = "wheels in this environment" if own else "an installed ROS"
    checks = [Check("ros", not (own and sourced), f"{kind}: {found['path']}" + (
        f", and {sourced[0]} is sourced as well: libraries of the two get mixed. Use a shell in which only one is active."
        if own and sourced else ""))]
    rmw = found["rmw"]
    profiles = {name: environment[name] for name in PROFILE_VARIABLES if environment.get(name)}
    missing = [f"{name} names {path}" for name, path in profiles.items() if not Path(path).is_file()]
    profile = next(iter(profiles.values()), "")
    if "fastrtps" not in rmw:
        checks.append(Check("middleware", True, rmw))
    elif missing:
        checks.append(Check("middleware", False, f"{rmw}; {' and '.join(missing)}, which does not exist. Correct or unset it."))
    else:
        checks.append(Check("middleware", True, f"{rmw}, " + (f"profile {profile}" if profile else
                            "without a profile: raw images over best effort get lost. `openvla-ros run` sets one for its own processes; "
                            f"for the camera: export FASTRTPS_DEFAULT_PROFILES_FILE={profile_file()}"), note=not profile))
    domain = environment.get("ROS_DOMAIN_ID", "")
    domain_good = not domain or (domain.isdigit() and int(domain) <= 232)
    scope = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE") or ("LOCALHOST" if environment.get("ROS_LOCALHOST_ONLY") == "1" else "SUBNET")
    checks.append(Check("domain", domain_good and scope != "OFF", f"ROS_DOMAIN_ID {domain or '0 (not set)'}, discovery range {scope}" + (
        "" if domain_good else ": expected a number from 0 to 232 (0 to 101 is safe)") + (
        ": OFF stops all traffic between processes; use LOCALHOST or SUBNET" if scope == "OFF" else "")))
    if isinstance(messages, str):
        checks.append(Check("openvla_msgs", False, f"cannot be used: {messages}. Build it: make setup, or colcon build --base-paths . msg "
                            "and source install/setup.bash before Python starts."))
    else:
        copies = messages["copies"]
        checks.append(Check("openvla_msgs", len(copies) <= 1, messages["path"] if len(copies) <= 1 else
                            f"found {len(copies)} times: {', '.join(copies)}. The first is used; remove the others, they may differ."))
    return checks


def profile_file() -> Path:
    """The Fast DDS profile of this package; only its name where the package lost its config folder."""
    try:
        return image_profile()
    except OpenvlaRosError:
        return Path("config/fastdds.xml")


def optional_checks() -> list[Check]:
    """Parts that only some modes need: never bad, but worth knowing."""
    return [Check(name, True, "installed") if importlib.util.find_spec(name) else Check(name, True, f"not installed ({why})", note=True)
            for name, why in OPTIONAL.items()]


def config_check() -> Check:
    """The config folder and the robots in it."""
    try:
        folder = share_folder() / "config"
    except OpenvlaRosError as error:
        return Check("config", False, str(error))
    robots = sorted(path.stem for path in (folder / "robots").glob("*.yaml"))
    return Check("config", bool(robots), f"{folder}, robots: {', '.join(robots) or 'none. Install the package again.'}")


def free_bytes(torch_found: dict[str, Any] | str) -> tuple[float, str]:
    """Memory that a model could take, and whose it is: that of the freest GPU, else that of the computer."""
    gpus = [] if isinstance(torch_found, str) else torch_found["gpus"]
    if gpus:
        name, free, _ = max(gpus, key=lambda gpu: gpu[1])
        return float(free), str(name)
    return float(psutil.virtual_memory().available), "this computer"


def checkpoint_checks(folder: Path, bytes_per_weight: float, free: tuple[float, str]) -> list[Check]:
    """Files, sizes and statistics of a checkpoint folder, from file headers alone."""
    if not (folder / "config.json").is_file():
        return [Check("checkpoint", False, f"{folder} has no config.json. Name the folder of a checkpoint in the Hugging Face layout.")]
    try:
        configuration = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        return [Check("checkpoint", False, f"{folder}/config.json cannot be read: {error}. Copy it again.")]
    weights, problems = weight_count(folder)
    problems += [f"{name} is missing" for name in ("tokenizer.json", "preprocessor_config.json") if not (folder / name).is_file()]
    checks = [Check("checkpoint", not problems, f"{folder}: {weights / 1e6:.1f} million weights" if not problems
                    else f"{folder}: {'; '.join(problems)}. Copy the checkpoint again.")]
    needed = weights * bytes_per_weight
    fits = needed * 1.1 < free[0]
    checks.append(Check("checkpoint memory", fits, f"needs about {needed / GIB:.2f} GiB, {free[1]} has {free[0] / GIB:.1f} GiB free"
                        + ("" if fits else ". Use --quantization int8 or nf4, or a larger device.")))
    try:
        keys = sorted(read_statistics(folder, configuration))
        checks.append(Check("checkpoint statistics", True, f"{len(keys)}: {', '.join(keys)}"))
    except OpenvlaRosError as error:
        checks.append(Check("checkpoint statistics", False, str(error)))
    return checks


def weight_count(folder: Path) -> tuple[int, list[str]]:
    """How many weights the safetensors files say they hold, and what is wrong with the files."""
    files = sorted(folder.glob("*.safetensors"))
    problems, weights = [], 0
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        problems += [f"{name} is missing" for name in sorted(named - {path.name for path in files})]
    if not files:
        pickles = [path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"))]
        problems.append(f"only pickled weights ({pickles[0]}), which are never loaded" if pickles else "there is no *.safetensors file")
    for path in files:
        try:
            weights += tensor_elements(path)
        except ValueError as error:
            problems.append(f"{path.name}: {error}")
    return weights, problems


def tensor_elements(path: Path) -> int:
    """Numbers stored in a safetensors file: 8 bytes of header length, a JSON header, then the data. Raises ValueError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("truncated, or a Git LFS pointer instead of the file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"{size} bytes, expected {8 + length + end}")
    return sum(math.prod(entry["shape"]) for entry in header.values())
