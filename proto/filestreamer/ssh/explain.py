"""Why the far side did not come up, in clear words: from how ssh has ended, and what it and the remote shell have said.

ssh ends with 255 for errors of its own, and else with the exit code of the remote command. What the far side itself
finds wrong, it says in its answer (`lines`).
"""

import json
import re
from collections.abc import Sequence
from typing import Final

from filestreamer.process.log import printable
from filestreamer.wire.errors import ConnectionLost, Exit, FarSideFailed, FilestreamerError

SHOWN_CHARACTERS: Final = 300
SSH_ERROR: Final = 255
_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126

_HOST_KEY: Final = re.compile(
    r"host key verification failed|remote host identification has changed|no .* host key is known", re.I
)
_REFUSED: Final = re.compile(
    r"permission denied|too many authentication failures|no supported authentication methods", re.I
)
_UNREACHABLE: Final = re.compile(
    r"could not resolve hostname|connection refused|connection timed out|operation timed out|no route to host"
    r"|network is unreachable|host is down|invalid argument",
    re.I,
)
_MISSING: Final = re.compile(r"command not found|unknown command|: not found|no such file or directory", re.I)
_TOO_OLD: Final = re.compile(r"needs Python 3\.\d+.*")
_NO_SERVE: Final = re.compile(r"unexpected extra argument \(?'?(serve|relay)")
_PROHIBITED: Final = re.compile(
    r"administratively prohibited|stdio forwarding request failed|forwarding (is )?(disabled|not permitted)", re.I
)
_FINAL: Final = re.compile(
    r"ssh: (connect to host|could not resolve hostname) |host key verification failed\.|.*: permission denied \(", re.I
)
_UNREACHABLE_FROM_THERE: Final = re.compile(r"open failed: (connect failed|unknown)", re.I)


def is_host_key(lines: Sequence[str]) -> bool:
    """Whether ssh says that it does not trust the key of the machine."""
    return _any(_HOST_KEY, lines) is not None


def is_refused(lines: Sequence[str]) -> bool:
    """Whether ssh says that the login was refused."""
    return _any(_REFUSED, lines) is not None


def is_unreachable(lines: Sequence[str]) -> bool:
    """Whether ssh says that it does not reach the machine."""
    return _any(_UNREACHABLE, lines) is not None


def is_prohibited(lines: Sequence[str]) -> bool:
    """Whether ssh says that sshd forwards no connections."""
    return _any(_PROHIBITED, lines) is not None


def is_unreachable_from_there(lines: Sequence[str]) -> bool:
    """Whether ssh says that sshd could not connect to where it was asked to."""
    return _any(_UNREACHABLE_FROM_THERE, lines) is not None


def is_quoted(line: str, command: str) -> bool:
    """Whether ssh gives up with this line, or the remote shell does not find the command: errors quote such lines."""
    return bool(_FINAL.match(line) or (_MISSING.search(line) and _name(command) in line))


def last_words(lines: Sequence[str], code: int | None) -> str:
    """Return what ssh said last, as one line that can be shown."""
    for line in reversed(lines):
        if not line.startswith("{"):
            return shown(line)
    return f"ssh has ended with {_ending(code)}"


def shown(text: str) -> str:
    """Return a text of the other machine as one short line without control characters."""
    text = printable(text)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _ending(code: int | None) -> str:
    if code is None:
        return "no exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _any(pattern: "re.Pattern[str]", lines: Sequence[str]) -> str | None:
    return next((line for line in reversed(lines) if pattern.search(line)), None)


def _name(command: str) -> str:
    """Return the name of the program that a command starts."""
    return command.split(maxsplit=1)[0].rpartition("/")[2]


def _logged_reason(lines: Sequence[str]) -> str:
    """Return why a service says that it ends, from its log; empty where it says nothing."""
    for line in reversed(lines):
        try:
            reason = json.loads(line)["reason"]
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
        if isinstance(reason, str):
            return reason
    return ""


def explain(
    host: str,
    command: str,
    code: int | None,
    said: Sequence[str],
    printed: str,
    *,
    login: str,
    service: str,
) -> FilestreamerError:
    """Return the error for a far side that has not answered.

    `command` is that of --remote-command, `code` how ssh has ended (negative: by a signal), `said` the last lines of
    standard error, `printed` the last line of standard output. `login` is how the user logs in there by hand, `service`
    what was to be started.
    """
    if code == SSH_ERROR:
        return _ssh_error(host, login, said, code)
    if (old := _any(_TOO_OLD, said)) is not None:
        return FarSideFailed(f"{host}: {shown(old)}; --remote-command names a newer one", exit_code=Exit.USAGE)
    if _any(_NO_SERVE, said) is not None:
        return FarSideFailed(
            f"{host}: filestreamer is too old there to be started over ssh: install the version of this machine",
            exit_code=Exit.REFUSED,
            name="version",
        )
    word = command.split(maxsplit=1)[0]
    if code in (_NOT_FOUND, _NOT_EXECUTABLE) or _any(_MISSING, said) is not None:
        return FarSideFailed(
            f"{host}: {word} can't be run there ({last_words(said, code)}): install filestreamer on that machine, too;"
            " if it is installed there, PATH does not lead to it where ssh runs a command: say where it is, such as"
            f" --remote-command '~/.venv/bin/{service}'",
            exit_code=Exit.USAGE,
            name="not_installed",
        )
    if code is not None and (code < 0 or code > 128):
        number = -code if code < 0 else code - 128
        return FarSideFailed(f"{host}: {word} was ended by signal {number} there before it was up")
    words = last_words(said, code)
    if all(line.startswith("{") for line in said) and (reason := _logged_reason(said) or printed):
        words = shown(reason)
    return FarSideFailed(f"{host}: {word} has ended with exit code {code} before it was up: {words}")


def _ssh_error(host: str, login: str, said: Sequence[str], code: int) -> FilestreamerError:
    words = last_words(said, code)
    if is_host_key(said):
        hint = f"its key is not known here: run {login} once, and say yes if the fingerprint that it shows is right"
        if any("IDENTIFICATION HAS CHANGED" in line for line in said):
            hint = (
                "its key is another one than before: somebody may stand in between; if the machine is new, or has a"
                " new key, ssh-keygen -R removes the old one"
            )
        return FarSideFailed(f"{host}: ssh does not trust that machine: {words} ({hint})", exit_code=3, name="host_key")
    if is_refused(said):
        return FarSideFailed(
            f"{host}: the login was refused: {words.rstrip('.')}: {login} has to work first; --ssh says another key or"
            " user",
            exit_code=Exit.REFUSED,
            name="login",
        )
    if (why := _any(_UNREACHABLE, said)) is not None:
        return ConnectionLost(f"{host} can't be reached: {shown(why)}")
    return ConnectionLost(f"{host}: ssh failed: {words}")
