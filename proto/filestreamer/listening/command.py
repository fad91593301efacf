"""The command that is printed where a token was made: it connects the other side to this one."""

import contextlib
import socket
import sys
from typing import Any

from filestreamer.wire.sockets.addresses import format_address


def show_command(verb: str, command: str, token: str, address: tuple[Any, ...], *, tls: bool) -> None:
    """Print `command` with the address of this side, for people who want to `verb`.

    A wildcard address is shown as this machine's name.
    """
    if address[0] in ("0.0.0.0", "::"):
        address = (socket.gethostname(), address[1])
    shown = format_address(address)
    text = f"{verb} with:  FILESTREAMER_TOKEN={token} {command} {shown}{' --tls' if tls else ''}\n"
    _, percent, interface = shown.rpartition("]")[0].partition("%")
    if percent:
        text += f"            (in place of {interface}: the interface of the machine that connects)\n"
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
