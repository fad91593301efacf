"""Why a far side did not come up, from how ssh has ended, and what was said."""

import pytest

from filestreamer.ssh.explain import explain

CHANGED = "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @"


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (255, ["alice@nas: Permission denied (publickey)."], (3, "login", "try ssh alice@nas")),
        (255, ["Received disconnect from ::1: 2: Too many authentication failures"], (3, "login", "Too many")),
        (255, ["Host key verification failed."], (3, "host_key", "not known here")),
        (255, [CHANGED, "Host key verification failed."], (3, "host_key", "another one than before")),
        (255, ["No ED25519 host key is known for nas and you have requested strict checking."], (3, "host_key", "nas")),
        (255, ["ssh: Could not resolve hostname nas: Name or service not known"], (1, "connection_lost", "resolve")),
        (255, ["ssh: connect to host nas port 22: Connection refused"], (1, "connection_lost", "can't be reached")),
        (255, ["ssh: connect to host nas port 22: Connection timed out"], (1, "connection_lost", "can't be reached")),
        (255, ["ssh: connect to host nas port 22: No route to host"], (1, "connection_lost", "can't be reached")),
        (255, [], (1, "connection_lost", "exit code 255")),
        (127, ["sh: 1: receiver: not found"], (2, "not_installed", "--remote-command")),
        (127, ["fish: Unknown command: receiver"], (2, "not_installed", "fish: Unknown command")),
        (1, ["receiver: Command not found."], (2, "not_installed", "pip install")),
        (126, ["bash: /opt/receiver: Permission denied"], (2, "not_installed", "can't be run there")),
        (2, ["filestreamer needs Python 3.11 or newer; this is 3.6"], (2, "far_side", "this is 3.6")),
        (2, ["Error: Got unexpected extra argument (serve)"], (3, "version", "too old")),
        (137, [], (1, "far_side", "signal 9")),
        (-15, [], (1, "far_side", "signal 15")),
        (1, ["docker: no such image"], (1, "far_side", "docker: no such image")),
        (1, ['{"event": "x"}'], (1, "far_side", "exit code 1")),
        (None, [], (1, "far_side", "no exit code")),
    ],
)
def test_one_clear_line(code: int | None, said: list[str], expected: tuple[int, str, str]) -> None:
    error = explain("alice@nas", "receiver --x", code, said, "")
    assert (error.exit_code, error.name) == expected[:2]
    assert expected[2] in str(error)
    assert str(error).startswith("alice@nas")
    assert str(error).isprintable()


def test_what_was_printed_counts_where_nothing_was_said() -> None:
    error = explain("nas", "receiver", 1, [], "This account is \x1b[5mnot available.")
    assert str(error).endswith("before it was up: This account is \\x1b[5mnot available.")
