"""The lines of JSON with which the near side starts the far side (proto/README.md, "Started over ssh").

Each line is an object with the one key `filestreamer`. Paths may be any bytes: a byte that is not UTF-8 is written as
half a surrogate pair (PEP 383), whatever the locale of either side is.
"""

import json
import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, TypeAlias

from filestreamer.version import VERSION
from filestreamer.wire.errors import FarSideFailed, FilestreamerError
from filestreamer.wire.limits import VERSION as PROTOCOL
from filestreamer.wire.session import Side

FORM: Final = 1
"""The version of these lines; a side that meets another one says both versions, and ends."""
PREFIX: Final = b'{"filestreamer":'
"""How each line begins."""
REQUEST_BYTES: Final = 4 << 20
"""The longest request: it holds every path that is asked for."""
ANSWER_BYTES: Final = 16 << 10
SKIPPED_BYTES: Final = 64 << 10
"""How much a login shell may print before the answer."""
MARKER_BYTES: Final = 4 << 10
"""How much it may print before the marker of a relay."""


_INTERFACE: Final = re.compile(r"[A-Za-z0-9._-]{1,15}")

Types: TypeAlias = type | tuple[type, ...]
"""The types that a value may have, exactly."""


class Answer(NamedTuple):
    """What the far side says when it is up."""

    session: str
    """Names the service, as the near side has called it: each tunnel says it, so that one that leads elsewhere is
    noticed."""
    address: str
    """The address of the machine that ssh has reached, as that machine sees it; the service listens there."""
    port: int
    """Where it takes direct connections."""
    sha256: bytes
    """The digest of the certificate that it shows there; empty: it speaks clear text."""
    tunnel_port: int
    """Where it takes connections that sshd makes, in clear text."""
    machine: str
    """Names the machine, so that a service that is gone is not started anew on another one behind the same name."""


def encode(content: Mapping[str, Any]) -> bytes:
    """Write a line, with its end."""
    return json.dumps({"filestreamer": content}, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Read a line. Raises ValueError."""
    try:
        outer = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    inner = outer.get("filestreamer") if isinstance(outer, dict) and len(outer) == 1 else None
    if not isinstance(inner, dict):
        raise ValueError("it is no object with the key 'filestreamer'")
    return inner


def path_to_json(path: str) -> str:
    """Write a path so that the far side finds the same bytes, whatever the locales are."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def path_from_json(text: str) -> str:
    """Read a path as this system writes it. Raises ValueError."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


# --- the request


def request(task: str, **content: Any) -> bytes:
    """Write the request for a task: `receiver` or `sender` to be served, or `relay`."""
    return encode({"form": FORM, "version": VERSION, "protocol": PROTOCOL, "task": task, **content})


def read_request(line: bytes, task: str, known: Mapping[str, Types]) -> dict[str, Any]:
    """Read a request for this task; `known` has what it may say, with the types.

    Raises FarSideFailed, which names both versions where the near side's is another one.
    """
    try:
        content = decode(line)
    except ValueError as error:
        raise FarSideFailed(f"this is no request: {error}", exit_code=2) from None
    theirs = _version(content)
    if content.get("form") != FORM:
        raise FarSideFailed(_versions(theirs), exit_code=3, name="version")
    for key in ("form", "version", "protocol"):
        content.pop(key, None)
    asked = content.pop("task", None)
    if asked != task:
        raise FarSideFailed(f"this is {task}, and not {asked!r}: change --remote-command", exit_code=2)
    return _check(content, known, theirs)


def read_own(asked: Mapping[str, Any], known: Mapping[str, Types]) -> dict[str, Any]:
    """Read what one service alone has to know. Raises FarSideFailed."""
    return _check(dict(asked), known, "the other side")


def _check(content: dict[str, Any], known: Mapping[str, Types], theirs: str) -> dict[str, Any]:
    """Return what is asked for. Raises FarSideFailed where it is not exactly what is known here."""
    unknown = sorted(content.keys() - known.keys())
    if unknown:
        reason = f"{_versions(theirs)} ({unknown[0]!r} is not known here)"
        raise FarSideFailed(reason, exit_code=3, name="version")
    for key, types in known.items():
        allowed = types if isinstance(types, tuple) else (types,)
        if key not in content or type(content[key]) not in allowed:
            raise FarSideFailed(f"{_versions(theirs)} ({key!r} is missing, or wrong)", exit_code=3, name="version")
    return content


def _version(content: Mapping[str, Any]) -> str:
    return f"{str(content.get('version'))[:40]} (protocol {str(content.get('protocol'))[:8]})"


def _versions(theirs: str) -> str:
    own = f"{VERSION} (protocol {PROTOCOL})"
    return f"the two versions do not go together: {theirs} started {own}: update the older one"


# --- the answer


def answer(content: Answer) -> bytes:
    """Write the answer of a service that is up. An empty line before it ends one that a login shell has left open."""
    fields = content._asdict() | {"sha256": content.sha256.hex()}
    return b"\n" + encode({"form": FORM, "version": VERSION, "protocol": PROTOCOL, **fields})


def held(session: str) -> bytes:
    """Write the answer of one that holds a service which another ssh has started."""
    return b"\n" + encode({"form": FORM, "version": VERSION, "protocol": PROTOCOL, "held": session})


def failure(error: FilestreamerError) -> bytes:
    """Write the answer of a far side that can't do what it is asked for."""
    said = {"name": error.name, "exit_code": int(error.exit_code), "message": str(error), "retryable": error.retryable}
    return b"\n" + encode({"form": FORM, "version": VERSION, "protocol": PROTOCOL, "error": said})


def read_answer(line: bytes, host: str) -> "Answer | str":
    """Read an answer: that of a service that is up, or the session of one that is held.

    Raises FarSideFailed: what the far side says, or that it is of another version.
    """
    from filestreamer.process.log import printable

    try:
        content = decode(line)
        if (said := content.get("error")) is not None:
            error = FarSideFailed(
                f"{host}: {printable(str(said['message']))}",
                exit_code=said["exit_code"] if said["exit_code"] in range(1, 6) else 1,
                name=said["name"] if str(said["name"]).isidentifier() else "failed",
            )
            error.retryable = said["retryable"] is True
            raise error
        if content.get("form") != FORM:
            raise ValueError("another form")
        if isinstance(held_session := content.get("held"), str):
            return held_session
        found = {name: content[name] for name in Answer._fields}
        for name, type_ in Answer.__annotations__.items():
            if name != "sha256" and type(found[name]) is not type_:
                raise ValueError(name)
        return _plausible(Answer(**(found | {"sha256": bytes.fromhex(found["sha256"])})))
    except (ValueError, TypeError, KeyError, AttributeError):
        theirs = "another version of filestreamer"
        if line.startswith(PREFIX):
            try:
                theirs = printable(_version(decode(line)))
            except ValueError:
                pass
        reason = f"{host}: the two versions do not go together: {theirs} there, {VERSION} (protocol {PROTOCOL}) here"
        raise FarSideFailed(f"{reason}: update the older one", exit_code=3, name="version") from None


def _plausible(content: Answer) -> Answer:
    """Return an answer that may be acted on: ssh hands the address to the user's ProxyCommand. Raises ValueError."""
    host, percent, interface = content.address.partition("%")
    ip_address(host)
    if percent and not _INTERFACE.fullmatch(interface):
        raise ValueError("address")
    if not (0 < content.port < 65536 and 0 < content.tunnel_port < 65536 and len(content.sha256) in (0, 32)):
        raise ValueError("port")
    return content


def marker(session: str) -> bytes:
    """Write what a service says first on a connection that comes through ssh."""
    return b"\n" + encode({"tunnel": session})


def read_marker(line: bytes) -> str | None:
    """Return the session that a marker names; None where it is none."""
    try:
        found = decode(line).get("tunnel")
    except ValueError:
        return None
    return found if isinstance(found, str) else None


def other(side: Side) -> Side:
    """Return the side that the far side is where this one is `side`."""
    return "receiver" if side == "sender" else "sender"
