"""The user's own token: on loopback, both sides use it where none is given, so that the same user types nothing.

It is the file `$XDG_RUNTIME_DIR/filestreamer/token`, or `~/.cache/filestreamer/token` where there is no such directory;
its mode is 0600, that of its directory 0700. A receiver makes the file where it is missing, before it accepts a
connection. A sender only reads it, when a receiver asks for a token.

No other user can read the token or put one there: a base directory that others may write to is skipped, a token
directory that others may use is an error, a token file that others may use is replaced, and below the base directory no
symbolic link is followed.
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
    """The token, and the path of its file."""

    token: str
    path: str


def is_loopback(host: str) -> bool:
    """Return whether a numeric address, as the kernel writes it, can be reached from this machine only."""
    return host == "::1" or host.removeprefix("::ffff:").startswith("127.")


def make(environ: Mapping[str, str]) -> OwnToken | None:
    """Return this user's token, which is made where there is none; None where this user has no directory for it.

    Raises UsageError where the directory is open to other users, or can't be written to.
    """
    for base in _bases(environ):
        path = f"{base}/{_DIRECTORY}/{_NAME}"
        directory = _open(base, create=True)
        if directory is None:
            continue
        try:
            with contextlib.suppress(OSError):  # a file system without locks: `_write` copes
                fcntl.flock(directory, fcntl.LOCK_EX)
            return OwnToken(_read(directory) or _write(directory), path)
        except OSError as error:
            raise UsageError(f"can't create the token file {path} ({error.strerror}): {_INSTEAD}") from None
        finally:
            os.close(directory)
    return None


def read(environ: Mapping[str, str]) -> OwnToken | None:
    """Return this user's token; None where there is none. Raises UsageError where its directory is open to others."""
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


def read_again() -> str:
    """Return this user's token as it is now, where there was one. Raises UsageError, ValueError."""
    own = read(os.environ)
    if own is None:
        raise ValueError("the user's own token can't be read")
    return own.token


def _bases(environ: Mapping[str, str]) -> list[str]:
    """Return the base directories in which the token may be, best first; they may be missing or unfit."""
    # All services of a user must find the same token: in a login session; outside of one, without XDG_RUNTIME_DIR; and
    # under `su`, where XDG_RUNTIME_DIR and HOME may still be those of the other user.
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
    """Open the token directory in a base directory; return its descriptor, None where one of them is missing or unfit.

    Raises UsageError where other users may use the token directory.
    """
    try:
        if create and base.endswith("/.cache"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(base, 0o700)
        above = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(above)
            if status.st_uid != os.geteuid() or status.st_mode & stat.S_IWOTH:
                return None  # it belongs to another user, as after `su`, or everybody may write to it, as to /tmp
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(_DIRECTORY, 0o700, dir_fd=above)
            directory = os.open(_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=above)
        finally:
            os.close(above)
    except OSError:  # missing, or not to be read or made: another base directory may do
        return None
    status = os.fstat(directory)
    if status.st_uid == os.geteuid() and not status.st_mode & 0o077:
        return directory
    os.close(directory)
    path = f"{base}/{_DIRECTORY}"
    raise UsageError(f"{path} is open to other users: remove it (it is made again), or {_INSTEAD}")


def _read(directory: int) -> str | None:
    """Return the token in a token directory; None where there is none, or others may know it. Raises OSError."""
    try:
        fd = os.open(_NAME, os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=directory)
    except OSError:  # missing, or not a file: a symbolic link fails by O_NOFOLLOW
        return None
    return token_in(fd)


def token_in(fd: int) -> str | None:
    """Return the token in an open file, which is closed; None where it holds none, or others may know it.

    Raises OSError.
    """
    with open(fd, encoding="ascii", errors="replace") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return None
        token = file.read(_READ_BYTES).strip()
    # What a power failure has made of one may be zeros, which anybody could guess.
    return token if len(token) >= TOKEN_CHARACTERS_MIN and token.isprintable() else None


def _write(directory: int) -> str:
    """Write a new token atomically; return it, or the token of a process that was faster. Raises OSError."""
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
        except OSError:  # a token is there by now, or another kind of file, or the file system has no hard links
            other = _read(directory)
            if other is not None:
                return other
            os.rename(temporary, _NAME, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
    return token
