"""`receiver-health` exits with 0 while the receiver of this machine answers: the image's HEALTHCHECK.

It takes no shell, and imports next to nothing, as it runs every few seconds. It is a command of its own, as it runs
where received files lie, and `python -m` imports from the working directory. Where to ask is in the variable that the
image sets; whoever gives the receiver another address by a flag gives it to the check by the variable, too.
"""

import os
import socket
import sys
from collections.abc import Mapping
from typing import Final

from filestreamer.settings.address import parse_address

TIMEOUT_SECONDS: Final = 2.0


def check(environ: Mapping[str, str]) -> str | None:
    """Ask once; return what is wrong, None where the receiver answers or where `off` says that nobody does."""
    value = environ.get("FILESTREAMER_RECEIVER_METRICS") or environ.get("FILESTREAMER_METRICS") or "127.0.0.1:9464"
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
    return None if status == [b"200"] else f"{value} does not answer as a receiver does"


def main() -> None:
    """Exit with 0 or 1, and say why."""
    sys.exit(check(os.environ))


if __name__ == "__main__":
    main()
