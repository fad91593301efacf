"""Where the far side is: the address that ssh has reached, and the private directory of a session.

The directory has the session's name, which nobody else can guess, so that another ssh of the same user finds it.
"""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from filestreamer.wire.errors import ConnectionLost, FarSideFailed
from filestreamer.wire.sockets.listen import listen

RELAY: Final = "relay"
LEASE: Final = "lease"
PATH_BYTES: Final = 50
"""The longest temporary directory: the name of the session comes behind it, and a socket takes 108 bytes in all."""
_MACHINE: Final = "machine"
"""The file that says whose directory it is, where several machines have one directory for temporary files."""
ANCESTORS_MAX: Final = 16
_PREFIX: Final = "filestreamer-"
_SESSION: Final = re.compile(r"[0-9a-f]{32}")


def server_address(environ: Mapping[str, str]) -> str:
    """Return the address of this machine that ssh has reached. Raises FarSideFailed."""
    words = _ssh_connection(environ).split()
    if len(words) != 4:
        raise FarSideFailed(
            "SSH_CONNECTION is not set there: --remote-command has to pass it on, such as with docker run"
            " --network host -e SSH_CONNECTION, or sudo --preserve-env=SSH_CONNECTION",
            exit_code=2,
        )
    return words[2]


def _ssh_connection(environ: Mapping[str, str]) -> str:
    """Return the variable; where the remote command has lost it (sudo does), that of a process which has started it."""
    if found := environ.get("SSH_CONNECTION"):
        return found
    pid = os.getppid()
    for _ in range(ANCESTORS_MAX):
        with contextlib.suppress(OSError, ValueError, IndexError):
            for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if variable.startswith(b"SSH_CONNECTION="):
                    return os.fsdecode(variable.partition(b"=")[2])
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
        if pid <= 1:
            break
    return ""


def listen_on(address: str) -> socket.socket:
    """Listen on a free port of an address of this machine. Raises FarSideFailed."""
    try:
        (listener,) = listen(address, 0)
    except (OSError, ConnectionLost) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FarSideFailed(
            f"can't listen on {address}, where ssh has come in ({reason}): in a container, use the network of its host"
            " (docker run --network host)",
            exit_code=2,
        ) from None
    return listener


def machine() -> str:
    """Return what names this machine."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            if text := Path(path).read_text().strip():
                return hashlib.sha256(f"filestreamer {text}".encode()).hexdigest()[:32]
    return hashlib.sha256(f"filestreamer {platform.node()}".encode()).hexdigest()[:32]


# --- the private directory


def path_of(session: str) -> str:
    """Return the path of a session's directory. Raises FarSideFailed where this is no session."""
    if not _SESSION.fullmatch(session):
        raise FarSideFailed("the session is no session", exit_code=3, name="protocol")
    return os.path.join(_place(), f"{_PREFIX}{session}")


def _place() -> str:
    with contextlib.suppress(OSError):  # nothing can be written anywhere: told where the directory is made
        if len(os.fsencode(place := tempfile.gettempdir())) <= PATH_BYTES:
            return place
    return "/tmp"


def sweep() -> None:
    """Remove the directories of sessions of this machine whose service was killed. Never raises, and never waits."""
    with contextlib.suppress(OSError):
        for name in os.listdir(_place()):
            session = name.removeprefix(_PREFIX)
            if session == name or not _SESSION.fullmatch(session):
                continue
            try:
                connect_to(session, LEASE, waits=False).close()
            except ConnectionRefusedError:  # its socket is there, and nobody listens
                if _is_of_this_machine(path_of(session)):
                    remove_directory(path_of(session))
            except OSError:
                continue


def _is_of_this_machine(path: str) -> bool:
    try:
        return Path(path, _MACHINE).read_text() == machine()
    except (OSError, ValueError):
        return False


def make_directory(session: str) -> str:
    """Make the directory of a session; one that a service has left which was killed is replaced.

    Raises FarSideFailed.
    """
    path = path_of(session)
    try:
        if _is_ours(path):
            remove_directory(path)
        os.mkdir(path, 0o700)
        Path(path, _MACHINE).write_text(machine())
    except OSError as error:
        raise FarSideFailed(f"can't make a private directory: {path}: {error.strerror}", exit_code=4) from None
    return path


def remove_directory(path: str) -> None:
    """Remove a session's directory. Never raises."""
    shutil.rmtree(path, ignore_errors=True)


def listen_in(path: str, name: str) -> socket.socket:
    """Listen on a socket in a session's directory. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX)
    new = os.path.join(path, f".{name}")
    try:
        sock.bind(new)
        sock.listen(64)
        sock.setblocking(False)
        os.rename(new, os.path.join(path, name))  # so that whoever finds it (`sweep`) finds it listening
    except OSError:
        sock.close()
        raise
    return sock


def connect_to(session: str, name: str, *, waits: bool = True) -> socket.socket:
    """Connect to a socket of a service that runs. Raises OSError, FarSideFailed.

    One that is stopped accepts nothing; unless this `waits`, BlockingIOError is raised where many have come already.
    """
    path = path_of(session)
    if not _is_ours(path):
        raise FileNotFoundError(2, os.strerror(2))
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(waits)
        sock.connect(os.path.join(path, name))
        sock.setblocking(True)
    except OSError:
        sock.close()
        raise
    return sock


def _is_ours(path: str) -> bool:
    """Whether a directory is this user's, and nobody else may look into it."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
