"""A recording that is many times larger than the memory it may take is replayed all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

HEIGHT, WIDTH, FRAMES = 480, 640, 800
HEADROOM_BYTES = 160 * 1024 * 1024  # stacks and arenas of the decoding threads, and some twenty pictures; the pictures take 740 MB

CHILD = """
import json, resource, sys
import numpy as np
from openvla_ros.bags.frames import select
from openvla_ros.bags.read import Recording
from openvla_ros.bags.replay import replay
from openvla_ros.policy.scripted import ScriptedPolicy

def taken():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1])

bag, headroom = sys.argv[1], int(sys.argv[2])
with Recording(bag) as recording:
    limit = taken() + headroom
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        np.ones(2 * headroom, np.uint8)
        sys.exit("the limit does not hold here")
    except MemoryError:
        pass
    found = replay(recording, select(recording), ScriptedPolicy(), batch=4)
print(json.dumps({"frames": len(found.frames), "notes": found.notes, "last": found.frames[-1].index}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """740 MB of black pictures, which zstd makes small on the disk; a chunk holds about one of them."""
    from rosbags.typesys import Stores, get_typestore

    store: Any = get_typestore(Stores.ROS2_JAZZY)
    folder = tmp_path_factory.mktemp("large") / "bag"
    image, text = store.types["sensor_msgs/msg/Image"], store.types["std_msgs/msg/String"]
    header, time = store.types["std_msgs/msg/Header"], store.types["builtin_interfaces/msg/Time"]
    message = image(header(time(1, 0), "cam"), HEIGHT, WIDTH, "rgb8", 0, 3 * WIDTH, np.zeros(3 * HEIGHT * WIDTH, np.uint8))
    data = store.serialize_cdr(message, "sensor_msgs/msg/Image")
    writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        said = writer.add_connection("/instruction", "std_msgs/msg/String", typestore=store)
        seen = writer.add_connection("/camera/image_raw", "sensor_msgs/msg/Image", typestore=store)
        writer.write(said, 1, store.serialize_cdr(text("go"), "std_msgs/msg/String"))
        for number in range(FRAMES):
            writer.write(seen, 2 + number, data)
    return folder


@pytest.mark.parametrize("whole", [True, False])
def test_memory_is_flat(large: Path, tmp_path: Path, clean_environment: dict[str, str], whole: bool) -> None:
    bag = large
    if not whole:
        bag = tmp_path / "cut.mcap"
        content = (large / "bag.mcap").read_bytes()
        bag.write_bytes(content[: content.rindex(b"/camera/image_raw")])  # in the summary: without an index it is read from the front
    done = subprocess.run([sys.executable, "-c", CHILD, str(bag), str(HEADROOM_BYTES)], env=clean_environment | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["frames"] == FRAMES and said["last"] == FRAMES - 1
