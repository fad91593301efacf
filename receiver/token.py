"""Who may come in: on loopback everybody, elsewhere who has the token.

A receiver that is given no token and listens on another address than loopback makes one, keeps it in
`.filestreamer/token` (0600) of its destination, and uses it again when it is started again.
"""

import contextlib
import ipaddress
import os
import secrets
import stat
from typing import Any, Final

from receiver.settings import ReceiverSettings
from receiver.stdout import OpenFile
from receiver.store import Destination
from service.values import TOKEN_CHARACTERS_MIN
from wire.errors import Code, from_os_error

_NAME: Final = "token"
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW


def is_loopback(host: str) -> bool:
    """Whether a bound numeric address can be reached from this machine only."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def choose(settings: ReceiverSettings, destination: Destination | OpenFile, hosts: list[str], log: Any) -> str | None:
    """Return the token to ask for, None to ask for none. Raises TransferFailed(DESTINATION)."""
    if settings.token is not None:
        return settings.token
    if all(is_loopback(host) for host in hosts):
        return None
    if settings.anonymous:
        log.warning("anonymous", reason="whoever can connect may write into the destination")
        return None
    return secrets.token_urlsafe(24) if isinstance(destination, OpenFile) else _kept(destination)


def _kept(destination: Destination) -> str:
    """Read the token that an earlier run kept, or make one and keep it."""
    try:
        staging = destination.staging(create=True)
        try:
            return _read(staging) or _make(staging)
        finally:
            os.close(staging)
    except OSError as error:
        raise from_os_error(error, Code.DESTINATION, f"can't keep a token in {destination.path}") from None


def _read(staging: int) -> str | None:
    """Return the token that was kept; None where there is none that only we could have put there."""
    try:
        fd = os.open(_NAME, os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=staging)
    except FileNotFoundError:
        return None
    with open(fd, encoding="ascii", errors="replace") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return None
        token = file.read(4096).strip()
    return token if len(token) >= TOKEN_CHARACTERS_MIN else None


def _make(staging: int) -> str:
    token = secrets.token_urlsafe(24)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_NAME, dir_fd=staging)
    fd = os.open(_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=staging)
    with open(fd, "w", encoding="ascii") as file:
        file.write(token + "\n")
    return token
