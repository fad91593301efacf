"""TAB in real shells that were told to complete by README's line. What a line became is seen from what it has run."""

import os
import re
import select
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.waiting import until

README = Path(__file__).parents[2] / "README.md"
PROMPT = "now> "
RC = {
    "bash": ("bash", "--noprofile", "--rcfile", "rc", "-i"),
    "zsh": ("zsh", "-d", "-i"),  # reads $ZDOTDIR/.zshrc
    "fish": ("fish", "--no-config", "-i", "-C", "source rc"),
}
BEFORE = {
    "bash": "bind 'set enable-bracketed-paste off'; bind 'set bell-style none'",
    "zsh": "autoload -U compinit; compinit -u -D",
    "fish": "function fish_prompt; printf '%s' $PS1; end; set -g fish_autosuggestion_enabled 0",
}


class Shell:
    """An interactive shell in a terminal, in a directory of its own."""

    def __init__(self, name: str, directory: Path, master: int, process: "subprocess.Popen[bytes]") -> None:
        self.name = name
        self._directory = directory
        self._master = master
        self._process = process
        self._shown = b""

    def wait_for_prompt(self) -> None:
        """Wait until the shell reads a first line."""
        until(lambda: PROMPT.encode() in self._read(), f"{self.name} is ready")

    def words(self, typed: str) -> Sequence[str]:
        """Type a line, with TABs, and Enter; return the words that its command was run with."""
        ran = self._directory / "ran"
        ran.unlink(missing_ok=True)
        os.write(self._master, typed.encode() + b"\r")
        until(lambda: self._read() and ran.exists() and ran.read_text().endswith("\n\n"), f"{self.name} runs {typed!r}")
        return ran.read_text().split("\n")[:-2]

    def _read(self) -> bytes:
        """Return all that the shell has shown so far."""
        while select.select([self._master], [], [], 0)[0]:
            self._shown += os.read(self._master, 65536)
        return self._shown

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@pytest.fixture(scope="module", params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    name = str(request.param)
    if shutil.which(name) is None:
        assert name != "bash" or os.environ.get("CI") != "true", "bash is missing"
        pytest.skip(f"{name} is not installed")
    directory = tmp_path_factory.mktemp("shell")
    for each in ("folder/inner", "folder/other"):
        (directory / each).mkdir(parents=True)
    for each in ("folder.txt", "a file", "folder/inner.txt"):
        (directory / each).touch()
    programs = directory / ".bin"
    programs.mkdir()
    for service in ("sender", "receiver"):
        for command in (service, f"filestreamer-{service}"):
            # Only completion reaches the real one.
            asked = f"$_{service.upper()}_COMPLETE$_FILESTREAMER_{service.upper()}_COMPLETE"
            run = shlex.join([sys.executable, "-P", "-m", service])
            told = f'printf "%s\\n" "${{0##*/}}" "$@" "" >{shlex.quote(str(directory / "ran"))}'
            (programs / command).write_text(f'#!/bin/sh\nif [ -n "{asked}" ]; then exec {run}; fi\n{told}\n')
            (programs / command).chmod(0o755)
    line = re.search(rf"^.*{name}_source.*$", README.read_text(), re.MULTILINE)
    assert line is not None
    prompt = "" if name == "fish" else f"PS1='{PROMPT}'\n"
    for file in ("rc", ".zshrc"):
        (directory / file).write_text(f"{BEFORE[name]}\n{line[0]}\n{prompt}")
    master, slave = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *RC[name]],
        cwd=directory,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={
            "PATH": f"{programs}:/usr/bin:/bin",
            "TERM": "xterm" if name == "fish" else "dumb",
            "HOME": str(directory),
            "LC_ALL": "C.UTF-8",
            "ZDOTDIR": str(directory),
            "PS1": PROMPT,
        },
    )
    os.close(slave)
    made = Shell(name, directory, master, process)
    try:
        made.wait_for_prompt()
        yield made
    finally:
        made.end()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("sender --log-le\td\t", "sender --log-level debug"),
        ("sender --log-level=d\t", "sender --log-level=debug"),
        ("filestreamer-sender --dry\t", "filestreamer-sender --dry-run"),
        ("sender --existing ne\t", "sender --existing newer"),
        ("receiver --log-level w\t", "receiver --log-level warning"),
        ("filestreamer-receiver --allow-d\t", "filestreamer-receiver --allow-delete"),
        ("true a b c | sender --log-level d\t", "sender --log-level debug"),
        ("true; A=1 sender --log-level d\t", "sender --log-level debug"),
        ("sender gr\u00fcn --log-level d\t", "sender gr\u00fcn --log-level debug"),
        ("sender folder.\t", "sender folder.txt"),
        ("sender folder/inner.\t", "sender folder/inner.txt"),
        ("sender x --tls-cert folder/inner.\t", "sender x --tls-cert folder/inner.txt"),
        ("receiver --config folder/inner.\t", "receiver --config folder/inner.txt"),
        ("receiver --directory folder/o\t", "receiver --directory folder/other"),
        ("receiver --directory folder.\t", "receiver --directory folder."),
        ("sender x --to far:fold\t", "sender x --to far:fold"),
        ("sender x --to far:/et\t", "sender x --to far:/et"),
        ("sender x --to ssh://me@far/et\t", "sender x --to ssh://me@far/et"),
        ("receiver --from far:fold\t", "receiver --from far:fold"),
        ("receiver --from far:a far:fold\t", "receiver --from far:a far:fold"),
        ("receiver --from far:a --directory folder/o\t", "receiver --from far:a --directory folder/other"),
        ("sender x --to far: --via di\t", "sender x --to far: --via direct"),
        ("sender x --to far: --ssh fold\t", "sender x --to far: --ssh fold"),
        ("sender x --to far: folder.\t", "sender x --to far: folder.txt"),
        ("sender x --to fold\t", "sender x --to fold"),
        ("sender x --chunk-size fold\t", "sender x --chunk-size fold"),
    ],
)
def test_a_line_becomes(shell: Shell, typed: str, words: str) -> None:
    assert " ".join(shell.words(typed)).rstrip("/") == words  # zsh drops the slash at Enter


def test_a_name_with_a_space(shell: Shell) -> None:
    assert shell.words("sender a\\ f\t") == ["sender", "a file"]


def test_a_list_of_words(shell: Shell) -> None:
    if shell.name == "fish":
        pytest.skip("click's script for fish ends a word at its first comma")
    assert shell.words("sender x --tolerate vanished,ch\t") == ["sender", "x", "--tolerate", "vanished,changed"]
