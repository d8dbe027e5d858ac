"""Definitions of installed types, as a recording stores them: checked by the hash that ROS itself made of each type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from openvla_ros.bags.definitions import find_definition, share_folders

ODD = {"std_msgs/msg/Char", "service_msgs/msg/ServiceEventInfo"}
"""The bag library, which is the second oracle here, hashes these two (char fields) unlike ROS does."""


@pytest.mark.ros
@pytest.mark.parametrize("package", ["openvla_msgs", "sensor_msgs", "diagnostic_msgs", "geometry_msgs", "rcl_interfaces", "std_msgs"])
def test_every_definition_of_a_package_has_the_hash_that_ros_gave_it(package: str) -> None:
    folder = next((folder / package / "msg" for folder in share_folders() if (folder / package / "msg").is_dir()), None)
    assert folder is not None
    hashes = {}
    for path in folder.glob("*.msg"):
        kind = f"{package}/msg/{path.stem}"
        described = path.with_suffix(".json")
        if not described.is_file():
            pytest.skip("this ROS makes no type hashes (before Jazzy)")
        said = json.loads(described.read_text())["type_hashes"]
        hashes[kind] = next(entry["hash_string"] for entry in said if entry["type_name"] == kind)
    assert hashes
    for kind in hashes.keys() - ODD:
        store = get_typestore(Stores.EMPTY)
        store.register(get_types_from_msg(find_definition(kind), kind))
        assert store.hash_rihs01(kind) == hashes[kind]


def test_types_inside_are_found_whatever_the_spelling(tmp_path: Path) -> None:
    files = {"lab_msgs/msg/Hand": "# Finger not_this\nFinger[2] fingers  # lab_msgs/Nor this\nother_msgs/Thing<=3[] things\n"
                                  "uint8 OPEN=1\nstring<=10 name\nother_msgs/msg/Thing one\n",
             "lab_msgs/msg/Finger": "float32 angle 0.5\n", "other_msgs/msg/Thing": "lab_msgs/Finger finger\n"}
    for kind, text in files.items():
        path = tmp_path / f"{kind}.msg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    text = find_definition("lab_msgs/msg/Hand", [tmp_path / "nowhere", tmp_path])
    assert text.startswith(files["lab_msgs/msg/Hand"])
    assert [line for line in text.splitlines() if line.startswith("MSG:")] == ["MSG: lab_msgs/Finger", "MSG: other_msgs/Thing"]
    (tmp_path / "other_msgs/msg/Thing.msg").unlink()
    assert find_definition("lab_msgs/msg/Hand", [tmp_path]) == ""
    assert find_definition("no_msgs/msg/Such", [tmp_path]) == ""
