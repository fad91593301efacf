"""The command `receiver-health`: exits with 0 while the receiver of this machine answers. The image's HEALTHCHECK.

It needs no shell, and imports next to nothing, because it runs every few seconds. It is a command of its own and not
`python -m receiver.health`: it runs where received files lie, and `python -m` imports from the working directory.

The address comes from the variables that set --metrics; where that flag is given instead, the variable has to be set
for the health check as well.
"""

import os
import socket
import sys
from collections.abc import Mapping
from typing import Final

from filestreamer.process.variables import value_of
from filestreamer.settings.address import parse_address

TIMEOUT_SECONDS: Final = 2.0


def check(environ: Mapping[str, str]) -> str | None:
    """Ask the receiver once; return what is wrong. None where it answers, and where its metrics are `off`."""
    value = value_of(environ, "FILESTREAMER_RECEIVER_METRICS", "FILESTREAMER_METRICS") or "127.0.0.1:9464"
    if value == "off":
        return None
    try:
        host, port = parse_address(value)
        here = "127.0.0.1" if host in ("", "::", "0.0.0.0") else host
        with socket.create_connection((here, port), TIMEOUT_SECONDS) as sock:
            sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            status = sock.recv(64).split(maxsplit=2)[1:2]
    except (OSError, ValueError) as error:
        return f"{value}: {error}"
    return None if status == [b"200"] else f"{value} does not answer like a receiver"


def main() -> None:
    """Exit with 0, or with 1 and the reason on standard error."""
    sys.exit(check(os.environ))


if __name__ == "__main__":
    main()
