"""Packaging for pip and for colcon (ament_python reads this file, setup.cfg and package.xml).

What needs what is said by extras, because one source serves unlike computers:

- `pip install openvla-ros` gives the contract, the command side, the image path and the command line. It needs neither
  torch nor ROS, so a robot computer that only runs command_node does not carry gigabytes of it.
- `pip install openvla-ros[policy]` adds what loads and runs a model: the choice for a GPU server.
- `pip install openvla-ros[policy,simulation]` is enough to see the small shipped policy at work in this process.
- `pip install openvla-ros[all]`, which `make setup` does, is a development machine without a ROS installation.

On a robot with ROS 2 from apt the dependencies come from package.xml through rosdep; colcon does not read these lists.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

NAME = "openvla_ros"  # the ROS package name; pip takes openvla-ros for the same thing

# Lower bounds are what Ubuntu 22.04 (ROS 2 Humble, Python 3.10) has, where it has it.
CORE = [
    "numpy>=1.21",
    "scipy>=1.8",
    "pyyaml>=5.4",
    "pillow>=9.0",
    "opencv-python-headless>=4.5",
    "psutil>=5.9",
    "click>=8.0",
    "typer>=0.12",
    "rich>=13.0",
]

EXTRAS = {
    # Run a checkpoint. Which torch (CPU, CUDA) is pip's business: see constraints.txt.
    "policy": [
        "torch>=2.2",
        "transformers>=4.46",
        "tokenizers>=0.20",
        "safetensors>=0.4",
        "huggingface_hub>=0.25",
        "tqdm>=4.60",
    ],
    # quantization:=int8 and nf4
    "quantization": ["bitsandbytes>=0.45"],
    # Read and write recordings without ROS, and plot what was found in them.
    "bags": ["rosbags>=0.11.9", "mcap>=1.6", "matplotlib>=3.5"],
    # Inverse kinematics of the real arm.
    "kinematics": ["pin>=3.0"],
    # The tabletop, its camera and plots of what happened there; no OpenGL. mujoco-core (physics alone, 9 MB) begins with 4.0 and
    # Python 3.11; for Python 3.10 there is the whole package only. Before 3.17 mj_multiRay gives no normals, so no pictures.
    "simulation": ["mujoco-core>=4.0; python_version >= '3.11'", "mujoco>=3.17; python_version < '3.11'", "matplotlib>=3.5"],
    # ROS 2 Jazzy itself, where no ROS is installed (x86_64 Linux). [fastrtps] is the middleware: it cannot be left out.
    "ros-wheels": ["ros-jazzy-rclpy[fastrtps]", "ros-jazzy-common-interfaces"],
    # Tests, lint, types, and a colcon build without apt.
    "dev": [
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "mypy>=1.10",
        "ruff>=0.5",
        "types-PyYAML",
        "mcap-ros2-support>=0.5",
        "catkin_pkg>=1.0",
        "cmake>=3.21",
        "ninja",
        "colcon-bash",
        "colcon-cmake",
        "colcon-core",
        "colcon-defaults",
        "colcon-library-path",
        "colcon-metadata",
        "colcon-output",
        "colcon-package-information",
        "colcon-package-selection",
        "colcon-python-setup-py",
        "colcon-recursive-crawl",
        "colcon-ros",
    ],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
EXTRAS["viewer"] = ["rerun-sdk>=0.23"]  # --rerun; not in `all`: it is large, and nothing else needs it


# Products of a model on a CPU. Optional: without a C++ compiler or Python's headers the package is installed without it, and torch
# multiplies instead, slower. Without -lgomp at the end: threads are those of the library that torch brings.
KERNELS = Extension(f"{NAME}.policy.openvla._avx512", [f"{NAME}/policy/openvla/avx512.cpp"], optional=True, depends=["setup.py"],
                    extra_compile_args=["-std=c++17", "-O3", "-g0", "-fopenmp", "-fno-exceptions",
                                        "-Wno-uninitialized", "-Wno-maybe-uninitialized"])  # both complain of GCC's own headers


def version() -> str:
    """The one version number, read without importing the package (its dependencies may not be there yet)."""
    text = Path(NAME, "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{NAME}/__init__.py has no line of the form __version__ = \"1.2.3\"")
    return match.group(1)


def share_files() -> list[tuple[str, list[str]]]:
    """What ROS and `share_folder()` look for under <prefix>/share, subfolders of config/ and launch/ kept."""
    files = [
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
    ]
    for room in ("config", "launch"):
        by_folder: dict[str, list[str]] = {}
        for path in sorted(Path(room).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                by_folder.setdefault(path.parent.as_posix(), []).append(path.as_posix())
        files += [(f"share/{NAME}/{folder}", paths) for folder, paths in by_folder.items()]
    return files


setup(
    name=NAME,
    version=version(),
    description="A vision-language-action model in charge of a real robot arm, on ROS 2.",
    author="openvla_ros developers",
    author_email="openvla-ros@example.com",
    maintainer="openvla_ros developers",
    maintainer_email="openvla-ros@example.com",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["checkpoints/default/*"]},
    data_files=share_files(),
    ext_modules=[KERNELS],
    install_requires=CORE,
    extras_require=EXTRAS,
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "openvla-ros = openvla_ros.cli.app:main",
            "policy_node = openvla_ros.ros.policy_node:main",
            "command_node = openvla_ros.ros.command_node:main",
            "simulation_node = openvla_ros.ros.simulation_node:main",
        ],
        # Under its module's own name, so that `-p openvla_ros.pytest_plugin` does not register it twice.
        "pytest11": ["openvla_ros.pytest_plugin = openvla_ros.pytest_plugin"],
    },
)
