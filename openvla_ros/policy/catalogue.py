"""Which policies there are and how one is asked for: settings in, a ready `Policy` out.

This module imports no torch: `load_policy` does, late, when the chosen policy needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from openvla_ros.contract import STEP_S, Policy
from openvla_ros.errors import CheckpointError, ConfigurationError, DependencyMissing
from openvla_ros.policy.scripted import ScriptedPolicy
from openvla_ros.policy.statistics import only_key
from openvla_ros.share import share_folder

SCRIPTED = "scripted"
"""The checkpoint name of the policy that needs no weights (see `policy/scripted.py`)."""

DEFAULT = "default"
"""The checkpoint name of the small trained policy in this package, and the name of its profile. A folder of that name is ./default."""

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "checkpoints" / DEFAULT

CHECKPOINT_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json")
"""Without these the default checkpoint does not load."""

ACCEPTED_CHECKPOINTS = (f"the word {DEFAULT!r} (the small policy that comes with this package), a folder with config.json and "
                        "*.safetensors, a Hugging Face hub name such as openvla/openvla-7b, "
                        f"or the word {SCRIPTED!r}")

PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("bfloat16", "float32")
QUANTIZATIONS = ("none", "int8", "nf4", "w8a8")
ATTENTIONS = ("sdpa", "flash")
RESIZES = ("direct", "bridge")
PROMPT_STYLES = ("auto", "openvla", "v01")
DRAFTS = ("previous", "none")

CHOICES: Mapping[str, tuple[str, ...]] = {
    "device": DEVICES, "dtype": DTYPES, "quantization": QUANTIZATIONS, "attention": ATTENTIONS,
    "resize": RESIZES, "prompt_style": PROMPT_STYLES, "draft": DRAFTS,
}
"""Field of PolicySettings -> the values it takes."""


@dataclass(frozen=True)
class PolicySettings:
    """How to load and run one policy. Raises ConfigurationError for a value outside its choices or range.

    checkpoint: `default`, a folder in the published Hugging Face layout, a hub name such as `openvla/openvla-7b`, or `scripted`.
    unnorm_key: action statistics to use, such as `bridge_orig`; empty is allowed when the checkpoint has only one.
    resize: `direct` gives the camera frame to the model's own resize (as the released server does), `bridge` does the
        JPEG 95 + Lanczos3 resize of the BridgeData evaluation before that.
    rotate_180: turn the frame by 180 degrees first (LIBERO cameras).
    centre_crop: keep the central 90 % of the area, for models fine-tuned with random crops.
    prompt_style: `auto` asks the checkpoint; the others force one of the two released prompts.
    quantization: weights of the decoder in fewer bits: `int8` and `nf4` by bitsandbytes, which save memory and cost time, `w8a8` by our
        own layers, with the activations in 8 bits too. None of them is exact; which is fast here, `openvla-ros bench` tells.
    draft: what is tried first: the `previous` action, which takes fewer passes where the scene is steady, or `none`. Answers are the same.
    step_s: how long one action is meant to be played [s]. threads: torch CPU threads; 0 leaves torch's own choice.
    """

    checkpoint: str
    unnorm_key: str = ""
    device: str = "auto"
    dtype: str = "bfloat16"
    quantization: str = "none"
    attention: str = "sdpa"
    resize: str = "direct"
    rotate_180: bool = False
    centre_crop: bool = False
    prompt_style: str = "auto"
    draft: str = "previous"
    step_s: float = STEP_S
    threads: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), field.type
            if not isinstance(value, PYTHON_TYPES[str(kind)]) or (isinstance(value, bool) and kind != "bool"):
                raise ConfigurationError(f"policy setting {field.name} is {value!r}, expected a value of type {kind}.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigurationError(f"policy setting {name} is {getattr(self, name)!r}, expected one of "
                                         f"{', '.join(choices)}.")
        if not self.checkpoint.strip():
            raise ConfigurationError(f"policy setting checkpoint is empty, expected {ACCEPTED_CHECKPOINTS}.")
        if not 0.01 <= self.step_s <= 10.0:
            raise ConfigurationError(f"policy setting step_s is {self.step_s}, expected 0.01 to 10 seconds "
                                     f"({STEP_S} for models trained on BridgeData).")
        if not 0 <= self.threads <= 1024:
            raise ConfigurationError(f"policy setting threads is {self.threads}, expected 0 (torch chooses) to 1024.")


def default_checkpoint() -> Path:
    """The folder of the checkpoint that is shipped in the package. Raises CheckpointError if a file of it is not there."""
    absent = [name for name in CHECKPOINT_FILES if not (DEFAULT_FOLDER / name).is_file()]
    if absent:
        raise CheckpointError(f"the default checkpoint {DEFAULT_FOLDER} lacks {', '.join(absent)}. Install the package again, or make "
                              "the checkpoint with: openvla-ros train-default, and name the folder that it writes.")
    return DEFAULT_FOLDER


def profile_names() -> tuple[str, ...]:
    """The policies that `config/policies/` describes."""
    return tuple(sorted(path.stem for path in (share_folder() / "config" / "policies").glob("*.yaml")))


def read_profile(name: str, **overrides: Any) -> PolicySettings:
    """Settings from `config/policies/<name>.yaml` or from a file path that ends in .yaml; `overrides` win.

    An override of "" is none. Another checkpoint that has statistics under one key only is used with that key, unless
    `unnorm_key` is given: the profile's key belongs to the profile's checkpoint. The checkpoint `default` brings its own profile
    along in place of another named one, because the small model works with no other image path.
    Raises ConfigurationError for an unknown profile, an unreadable file, unknown fields or values out of range.
    """
    if overrides.get("checkpoint") == DEFAULT and not name.endswith(".yaml"):
        name = DEFAULT
    path = Path(name).expanduser() if name.endswith(".yaml") else share_folder() / "config" / "policies" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigurationError(f"no policy profile {name!r} at {path}; there are {', '.join(profile_names())}. "
                                 "Name one of them or the path of a .yaml file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"policy profile {path} cannot be read: {error}") from error
    known = {field.name for field in fields(PolicySettings)}
    if not isinstance(content, dict) or not set(content) <= known:
        came = sorted(map(str, set(content) - known)) if isinstance(content, dict) else type(content).__name__
        raise ConfigurationError(f"policy profile {path} holds {came}, expected only {', '.join(sorted(known))}.")
    given = {name: value for name, value in overrides.items() if value != ""}
    if "checkpoint" in given and "unnorm_key" not in given:
        folder = str(DEFAULT_FOLDER if given["checkpoint"] == DEFAULT else given["checkpoint"])
        given["unnorm_key"] = only_key(folder) or content.get("unnorm_key", "")
    return PolicySettings(**{"checkpoint": "", **content, **given})


def load_policy(settings: PolicySettings, progress: bool | None = None) -> Policy:
    """Load what `settings.checkpoint` names, weights included; for openvla-7b that takes up to minutes.

    progress: show a bar on stderr; None means only if stderr is a terminal. Raises OpenvlaRosError; nothing stays
    allocated then.
    """
    if settings.checkpoint == SCRIPTED:
        return ScriptedPolicy(step_s=settings.step_s)
    # Late import: torch takes a second, and the command side runs on computers that have none.
    try:
        from openvla_ros.policy.openvla.loading import load_openvla
    except ModuleNotFoundError as error:
        raise DependencyMissing(f"the checkpoint {settings.checkpoint!r} needs the Python package {error.name!r}, which is "
                                "not installed. Install it with: pip install 'openvla-ros[policy]'") from error
    return load_openvla(settings, progress)

