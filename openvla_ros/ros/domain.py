"""A ROS domain for nodes that are nobody else's business. No rclpy in here."""

from __future__ import annotations

import fcntl
import io
import os
import socket
import tempfile
from collections import deque
from pathlib import Path
from typing import IO

from openvla_ros.errors import ConfigurationError

DOMAINS = range(1, 101)
"""Their ports lie below those that Linux gives to connections."""

CLAIMS = 8
"""Domains that this process chose last and keeps to itself; by the time that one more is chosen, nodes listen in the oldest one."""

_claims: deque[IO[bytes]] = deque()


def free_domain() -> int:
    """A domain in which nobody on this computer listens, and which no other process has just chosen. Raises ConfigurationError.

    Never the one of the shell: what its other windows start later, a robot's driver for one, would be in it.
    """
    start, of_shell = os.getpid(), os.environ.get("ROS_DOMAIN_ID", "")
    for offset in range(len(DOMAINS)):
        domain = DOMAINS[(start + offset) % len(DOMAINS)]
        claim = None if str(domain) == of_shell else claim_domain(domain)
        if claim is None:
            continue
        if is_silent(domain):
            _claims.append(claim)
            if len(_claims) > CLAIMS:
                _claims.popleft().close()
            return domain
        claim.close()
    raise ConfigurationError(f"every ROS domain from {DOMAINS[0]} to {DOMAINS[-1]} is in use on this computer. End other ROS processes, or "
                             "choose a domain yourself (--domain, where there is one).")


def claim_domain(domain: int) -> IO[bytes] | None:
    """The domain for this process alone among this user's, as long as the file is open; None if another one has it.

    Between the choice of a domain and the first node in it lie seconds, in which its ports are still free. Where files cannot be locked, a
    claim holds nobody off.
    """
    try:
        path = Path(tempfile.gettempdir(), f"openvla_ros_{os.getuid()}_domain_{domain}")
        file = path.open("ab")
    except OSError:
        return io.BytesIO()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        pass
    return file


def is_silent(domain: int) -> bool:
    """Whether nobody on this computer listens in the domain. Its ports are fixed (DDSI-RTPS 9.6.1.1)."""
    try:
        for port in (7400 + 250 * domain, 7410 + 250 * domain):  # where its first participant listens
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind(("", port))
    except OSError:
        return False
    return True
