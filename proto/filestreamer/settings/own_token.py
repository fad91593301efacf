"""The user's own token: both sides read it on loopback where neither is given one, so that the same user types nothing.

It lies in `$XDG_RUNTIME_DIR/filestreamer/token`, or in `~/.cache/filestreamer/token` where this user has no such
directory, 0600 in a directory of 0700. A receiver makes it where it is missing, before it greets anybody; a sender only
reads it, when a receiver asks for a token. Another user can neither read it nor put one there: a directory that is not
this user's alone is passed over or refused, a file that is not is replaced, and no symbolic link is followed below the
directory that the environment names.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Mapping
from typing import Final, NamedTuple

from filestreamer.settings.values import TOKEN_CHARACTERS_MIN
from filestreamer.wire.errors import UsageError

_DIRECTORY: Final = "filestreamer"
_NAME: Final = "token"
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_READ_BYTES: Final = 4096
_INSTEAD: Final = "pass both sides --token-file or FILESTREAMER_TOKEN"


class OwnToken(NamedTuple):
    """The token, and where it lies."""

    token: str
    path: str


def is_loopback(host: str) -> bool:
    """Whether a numeric address, as the kernel writes it, can be reached from this machine only."""
    return host == "::1" or host.removeprefix("::ffff:").startswith("127.")


def make(environ: Mapping[str, str]) -> OwnToken | None:
    """Return this user's token, having made it where there is none; None where this user has no place for it.

    Raises UsageError where the place is open to others, or can't be written to.
    """
    for base in _bases(environ):
        path = f"{base}/{_DIRECTORY}/{_NAME}"
        directory = _open(base, create=True)
        if directory is None:
            continue
        try:
            with contextlib.suppress(OSError):  # a file system without locks: two that make one at once then link it
                fcntl.flock(directory, fcntl.LOCK_EX)
            return OwnToken(_read(directory) or _write(directory), path)
        except OSError as error:
            raise UsageError(f"{path} can't be made ({error.strerror}): {_INSTEAD}") from None
        finally:
            os.close(directory)
    return None


def read(environ: Mapping[str, str]) -> OwnToken | None:
    """Return this user's token; None where there is none. Raises UsageError where its place is open to others."""
    for base in _bases(environ):
        directory = _open(base, create=False)
        if directory is None:
            continue
        try:
            token = _read(directory)
        except OSError:
            token = None
        finally:
            os.close(directory)
        if token is not None:
            return OwnToken(token, f"{base}/{_DIRECTORY}/{_NAME}")
    return None


def _bases(environ: Mapping[str, str]) -> list[str]:
    """Return the directories in which it may lie, best first, whatever they are like.

    All services of a user are to find the same: those of a login, those that no login has started and which have no
    XDG_RUNTIME_DIR, and those that were started from another user's shell, as `su` does, and have that one's.
    """
    runtime = _unless_anothers(environ.get("XDG_RUNTIME_DIR")) or f"/run/user/{os.geteuid()}"
    home = _unless_anothers(environ.get("HOME")) or _home()
    found = (runtime, environ.get("XDG_CACHE_HOME") or "", f"{home}/.cache" if home else "")
    return [base.rstrip("/") for base in found if base.startswith("/")]


def _unless_anothers(path: str | None) -> str | None:
    try:
        return path if path and os.stat(path).st_uid == os.geteuid() else None
    except OSError:
        return path


def _home() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""


def _open(base: str, *, create: bool) -> int | None:
    """Open the directory of the token below a directory of this user's, a descriptor; None where there is neither.

    Raises UsageError where others have a part in it.
    """
    try:
        if create and base.endswith("/.cache"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(base, 0o700)
        above = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(above)
            if status.st_uid != os.geteuid() or status.st_mode & stat.S_IWOTH:
                return None  # another's, as su leaves it, or everybody's, such as /tmp
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(_DIRECTORY, 0o700, dir_fd=above)
            directory = os.open(_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=above)
        finally:
            os.close(above)
    except OSError:  # it is not there, or can't be read or made: there may be another place
        return None
    status = os.fstat(directory)
    if status.st_uid == os.geteuid() and not status.st_mode & 0o077:
        return directory
    os.close(directory)
    path = f"{base}/{_DIRECTORY}"
    raise UsageError(f"{path} is not this user's alone: remove it, and it is made anew, or {_INSTEAD}")


def _read(directory: int) -> str | None:
    """Return the token that lies there; None where there is none, or others may know it. Raises OSError."""
    try:
        fd = os.open(_NAME, os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=directory)
    except OSError:  # nothing, or what is no file, such as a symbolic link
        return None
    with open(fd, encoding="ascii", errors="replace") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return None
        token = file.read(_READ_BYTES).strip()
    return token if len(token) >= TOKEN_CHARACTERS_MIN else None


def _write(directory: int) -> str:
    """Make a token, and put it there atomically; return it, or that of a process that was faster. Raises OSError."""
    import secrets

    token = secrets.token_urlsafe(24)
    temporary = f".{_NAME}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=directory)
    try:
        with open(fd, "w", encoding="ascii") as file:
            os.fchmod(fd, 0o600)
            file.write(token + "\n")
        try:
            os.link(temporary, _NAME, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:  # there is one by now, or something that is none, or a file system without links
            other = _read(directory)
            if other is not None:
                return other
            os.rename(temporary, _NAME, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
    return token
