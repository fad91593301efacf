"""A real terminal for tests: a pane of tmux, read back as it shows what commands write."""

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator

from tests.support.prometheus import program, wait_for
from tests.support.services import HANG

ENDED = re.compile(r"^ENDED \d+$")
"""Not what was typed, which a line of the terminal may begin with."""


class Terminal:
    """Panes of one tmux server, each of which runs a shell without a prompt."""

    def __init__(self, directory: str) -> None:
        self._tmux = [program("tmux"), "-S", f"{directory}/tmux", "-f", "/dev/null"]

    def run(self, *args: str) -> str:
        """Run a command of tmux; return what it says."""
        environment = {name: value for name, value in os.environ.items() if name != "TMUX"}
        environment |= {"LC_ALL": "C.UTF-8"}
        return subprocess.run(
            [*self._tmux, *args], check=True, capture_output=True, text=True, timeout=HANG, env=environment
        ).stdout

    def open(self, name: str, columns: int = 80, lines: int = 24) -> None:
        """Open a pane."""
        self.run("new-session", "-d", "-s", name, "-x", str(columns), "-y", str(lines), "env PS1= sh")
        self.run("set-option", "-t", name, "status", "off")
        self.run("resize-window", "-t", name, "-x", str(columns), "-y", str(lines))

    def type(self, name: str, *command: object) -> None:
        """Have the shell of a pane run a command, and say with which code it ended."""
        line = " ".join(each if each in (">", "2>", "|") else shlex.quote(each) for each in map(str, command))
        self.run("send-keys", "-t", name, "clear", "Enter")
        wait_for(lambda: not self.shows(name), "an empty terminal")
        self.run("send-keys", "-t", name, "-l", f"clear; {line}; echo ENDED $?")
        self.run("send-keys", "-t", name, "Enter")

    def shows(self, name: str) -> list[str]:
        """Return the lines of a pane, without what is empty behind them."""
        return [line.rstrip() for line in self.run("capture-pane", "-p", "-t", name).rstrip().splitlines()]

    def has_cursor(self, name: str) -> bool:
        """Whether the cursor is shown."""
        return self.run("display-message", "-p", "-t", name, "#{cursor_flag}").strip() == "1"


@contextlib.contextmanager
def terminals() -> Iterator[Terminal]:
    """Run a tmux server for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="tmux-") as directory:  # short: it is the name of a socket
        made = Terminal(directory)
        yield made
        with contextlib.suppress(subprocess.CalledProcessError):
            made.run("kill-server")
