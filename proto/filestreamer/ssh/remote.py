"""Where ssh leads: [USER@]HOST:PATH, as scp writes it, and ssh://[USER@]HOST[:PORT]/PATH.

What follows the colon of HOST:PATH is no port: HOST:7800 is an address to connect to, and HOST:./7800 a directory. A
path is relative to the home directory of the remote user, unless it begins with `/`; `~` and `~NAME` are homes.

The path of a URL begins with the slash behind the host, and is absolute, as git has it: ssh://nas/srv and ssh://nas//srv
are /srv. ssh://nas/~/srv is below the home directory; ssh://nas is that directory. `%20` and the like are decoded.
"""

import re
import socket
from typing import Final, NamedTuple
from urllib.parse import unquote

REMOTES_ACCEPTED: Final = "[USER@]HOST:DIR or ssh://[USER@]HOST[:PORT]/DIR"

_SCHEME: Final = "ssh://"
_REMOTE: Final = re.compile(
    r"(?:(?P<user>[^/:\[\]]*)@)?(?:\[(?P<boxed>[^][/]*)\]|(?P<host>[^][/:@]*)):(?P<path>.*)", re.S
)
_AUTHORITY: Final = re.compile(r"(?:(?P<user>.*)@)?(?:\[(?P<boxed>[^][]*)\]|(?P<host>[^][:@]*))(?::(?P<port>[0-9]*))?")
_UNFIT_FOR_HOST: Final = re.compile(r"""[\s'"`$\\;&<>|(){}*?!,@/]""")
"""What no name of a machine has, and ssh refuses, or takes for a pattern."""
_UNFIT_FOR_USER: Final = re.compile(r"""[\s'"`;&<>|(){}:/]""")


class Remote(NamedTuple):
    """A place on a machine that ssh leads to."""

    host: str
    """A name of ssh's configuration or of the network, or an address without brackets."""
    path: str
    """As the user wrote it: relative to the home directory of the remote user, or absolute; empty: that directory."""
    user: str | None = None
    port: int | None = None
    """None: the port that ssh's configuration says."""

    @property
    def name(self) -> str:
        """The last component of the path, without a slash behind it."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def destination(self) -> str:
        """[USER@]HOST, as ssh takes it."""
        return self.host if self.user is None else f"{self.user}@{self.host}"

    def __str__(self) -> str:
        """Write it so that `parse_remote` reads the same."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        if self.port is None:
            return f"{user}{host}:{self.path}"
        path = self.path if self.path.startswith("/") or not self.path else f"/~/{self.path}"
        if self.path.startswith("~"):
            path = f"/{self.path}"
        return f"{_SCHEME}{user.replace('%', '%25')}{host.replace('%', '%25')}:{self.port}{path.replace('%', '%25')}"


def is_remote(value: object) -> bool:
    """Whether a text names a place that ssh leads to, well or badly, and not an address to connect to."""
    if not isinstance(value, str):
        return False
    if value.startswith(_SCHEME):
        return True
    match = _REMOTE.fullmatch(value)
    if match is None or match["host"] == "" or match["path"].startswith("//") or _is_ipv6(value):
        return False  # also a URL of another kind
    return match["user"] is not None or not _is_port(match["path"])


def parse_remote(value: object) -> Remote:
    """Read a place that ssh leads to. Raises ValueError with a message that says what is wrong."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{value!r} is not a remote directory: write it as {REMOTES_ACCEPTED}")
    if value.startswith(_SCHEME):
        return _parse_url(value)
    match = _REMOTE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is not a remote directory: write it as {REMOTES_ACCEPTED}")
    user, path = match["user"], match["path"]
    host = match["boxed"] if match["boxed"] is not None else match["host"]
    if path.startswith("//"):
        raise ValueError(f"{value!r} is a URL of another kind: write {host}:/DIR or ssh://{host}/DIR")
    if match["boxed"] is None and ":" in path:
        _check_brackets(value, host, path)
    if user is not None and _is_port(path) and path:
        raise ValueError(
            f"{value!r}: is {path} a directory or a port? Write {user}@{host}:./{path}, or ssh://{user}@{host}:{path}/DIR"
        )
    return _checked(value, Remote(host, path, user))


def _parse_url(value: str) -> Remote:
    authority, slash, rest = value.removeprefix(_SCHEME).partition("/")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueError(f"{value!r} is not a remote directory: write it as {REMOTES_ACCEPTED}")
    host = _decoded(match["boxed"] if match["boxed"] is not None else match["host"])
    user = None if match["user"] is None else _decoded(match["user"])
    port = None
    if match["port"]:
        port = int(match["port"]) if len(match["port"]) <= 5 else 65536
        if not 1 <= port <= 65535:
            raise ValueError(f"{value!r}: ports are 1 to 65535")
    path = _decoded(rest)
    if "\0" in path:
        raise ValueError(f"{value!r} is not a remote directory: a path has no NUL")
    if slash and not path.startswith("~"):
        path = f"/{path.lstrip('/')}"
    return _checked(value, Remote(host, path.removeprefix("~/") if path != "~/" else "", user, port))


def _decoded(text: str) -> str:
    """Undo percent-encoding; bytes that are not UTF-8 become what a path of this system has for them."""
    return unquote(text, encoding="utf-8", errors="surrogateescape")


def _is_port(text: str) -> bool:
    """Whether what follows the colon is digits, and so meant as a port."""
    return text.isascii() and text.isdecimal()


def _check_brackets(value: str, host: str, path: str) -> None:
    """Raise ValueError for an IPv6 address without brackets, of which scp would take the first group for the host."""
    groups = f"{host}:{path}"
    for end in (at for at, character in enumerate(groups) if character == ":"):
        if _is_ipv6(groups[:end]):
            raise ValueError(f"{value!r}: write an IPv6 address in brackets, such as [{groups[:end]}]:DIR")


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True


def _checked(value: str, remote: Remote) -> Remote:
    """Return a remote of which ssh can take no part for an option or for more than it is. Raises ValueError."""
    for name, part, unfit in (("host", remote.host, _UNFIT_FOR_HOST), ("user", remote.user, _UNFIT_FOR_USER)):
        if part is None:
            continue
        if not part:
            raise ValueError(f"{value!r} has no {name}: write it as {REMOTES_ACCEPTED}")
        if part.startswith("-"):
            raise ValueError(f"{value!r}: a {name} does not begin with '-'")
        if not part.isprintable() or unfit.search(part):
            raise ValueError(f"{value!r}: {part!r} is not the name of a {name}")
    return remote
