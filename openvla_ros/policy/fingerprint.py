"""A checkpoint folder in, a short digest out that says whether two runs used the same weights, tokenizer and configuration."""

from __future__ import annotations

import hashlib
from pathlib import Path

from openvla_ros.errors import CheckpointError

WHOLE_BYTES = 64 * 1024 * 1024
"""Files up to this size are read whole. Of longer ones BLOCKS pieces of BLOCK_BYTES are, evenly spaced, the first and last bytes among
them: training moves every weight, and 15 GB are then told apart in a second."""
BLOCKS, BLOCK_BYTES = 64, 1024 * 1024

ENDINGS = (".json", ".safetensors", ".model")


def checkpoint_digest(folder: Path) -> str:
    """16 hexadecimal digits of a SHA-256 over names, sizes and contents of the files that a policy is loaded from.

    Raises CheckpointError when one cannot be read.
    """
    content = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file()):
            size = path.stat().st_size
            content.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                if size <= WHOLE_BYTES:
                    content.update(file.read())
                    continue
                for block in range(BLOCKS):
                    file.seek((size - BLOCK_BYTES) * block // (BLOCKS - 1))
                    content.update(file.read(BLOCK_BYTES))
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}. Copy it again, or change its permissions.") from error
    return content.hexdigest()[:16]
