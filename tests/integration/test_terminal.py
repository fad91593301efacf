"""Progress as people see it: real services in a real terminal, which is a pane of tmux, read back as it shows them."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.prometheus import wait_for
from tests.support.services import Pair
from tests.support.terminal import ENDED, Terminal, terminals

MIB = 1 << 20
BAR = re.compile(r"^[━╸╺]+ +(\d+)% +[\d.]+ [KMGi]*B/s  ETA [\d:-]+ +(offering|moving|syncing)$")
CONNECTION = re.compile(r"^ {3,4}(\d+)  (up|down) +[\d.]+ [KMGi]*B/s +[\d.]+ [KMGi]*B in flight$")
OTHERS = re.compile(r"^  … and (\d+) more: +[\d.]+ [KMGi]*B/s +[\d.]+ [KMGi]*B in flight$")
END = re.compile(r"^━+  100% +[\d.]+ [KMGi]*B/s +complete$")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """Run a tmux server of this test alone."""
    with terminals() as made:
        yield made


@pytest.fixture
def address(pair: Pair) -> str:
    """Start a receiver elsewhere; return where."""
    return pair.address(pair.receiver())


def command(name: str, *args: object) -> tuple[object, ...]:
    return sys.executable, "-P", "-m", name, *args


def sending(file: Path, address: str, *args: object) -> tuple[object, ...]:
    return command("sender", file, "--to", address, "--chunk-size", "64KiB", *args)


def frame(shown: list[str]) -> list[str]:
    """Return the display: the last title, and what is below it."""
    titles = [at for at, line in enumerate(shown) if line.startswith(("sending ", "receiving "))]
    return shown[titles[-1] :] if titles else []


def moving(terminal: Terminal, name: str, lines: int) -> list[str]:
    """Wait for a display of a transfer that moves, of so many lines; return it."""

    def find() -> list[str]:
        drawn = frame(terminal.shows(name))
        bar = BAR.match(drawn[1]) if len(drawn) == lines else None
        return drawn if bar and int(bar[1]) > 0 else []

    return wait_for(find, f"a display of {lines} lines")


def numbers(lines: list[str]) -> list[int]:
    """Return the connections that these lines tell of, each of which is one of a connection."""
    found = [CONNECTION.match(line) for line in lines]
    return [int(each[1]) if each else -1 for each in found]


def address_of(terminal: Terminal, name: str) -> str:
    """Wait until the receiver in a pane listens; return where."""

    def find() -> list[str]:
        return re.findall(r"address=(127\S+:\d+)", "".join(terminal.shows(name)))

    return wait_for(find, "the address")[0]


def ended(terminal: Terminal, name: str) -> list[str]:
    """Wait for the end of a command; return what is shown."""

    def find() -> list[str]:
        shown = terminal.shows(name)
        return shown if any(ENDED.match(line) for line in shown) else []

    return wait_for(find, "the end")


@pytest.mark.parametrize("connections", [1, 16])
@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_a_line_for_each_connection(pair: Pair, terminal: Terminal, seed: int, end: str, connections: int) -> None:
    """Title, bar and connections while it moves; at the end what became of it, and the terminal as it was."""
    file = pair.file("in.bin", 24 * MIB, seed)
    flags = ("--connections", connections, "--rate-limit", "3MiB/s")
    terminal.open("pane")
    if end == "sender":
        terminal.type("pane", *sending(file, pair.address(pair.receiver()), *flags))
    else:
        where = ("--listen", "127.0.0.1:0", "--directory", pair.destination, "--metrics", "off", "--once")
        terminal.type("pane", *command("receiver", *where))
        pair.sender(file, address_of(terminal, "pane"), "--chunk-size", "64KiB", *flags)
    title, _bar, *lines = moving(terminal, "pane", 2 + connections)

    assert re.match(rf"{end.removesuffix('er').removesuffix('v')}\w+ in.bin +[\d.]+ [KM]iB of 24.0 MiB$", title)
    assert numbers(lines) == list(range(connections))
    assert len({line.index("B in flight") for line in lines}) == 1, "the figures are in columns"
    shown = ended(terminal, "pane")
    assert re.match(r"complete: in.bin: 24.0 MiB in [\d.]+ s \([\d.]+ MiB/s over \d+ connections?\)", shown[-3])
    assert shown[-2:] == ["  bound by --rate-limit", "ENDED 0"]
    assert not [line for line in shown if "in flight" in line or BAR.match(line)]
    if end == "sender":
        assert END.match(shown[-4])
    assert terminal.has_cursor("pane")


def test_it_follows_the_size_of_the_terminal(pair: Pair, terminal: Terminal, address: str, seed: int) -> None:
    """Whatever COLUMNS and LINES say, which shells export and nobody changes."""
    file = pair.file("in.bin", 48 * MIB, seed)
    terminal.open("pane")
    terminal.type(
        "pane", "env", "COLUMNS=80", "LINES=24", *sending(file, address, "--connections", 16, "--rate-limit", "3MiB/s")
    )
    moving(terminal, "pane", 18)
    for columns in (60, 120):
        terminal.run("resize-window", "-t", "pane", "-x", str(columns), "-y", "24")
        title = title_of_width(terminal, columns)
        assert title.endswith(" of 48.0 MiB")
        assert all(CONNECTION.match(line) for line in moving(terminal, "pane", 18)[2:])
    terminal.run("resize-window", "-t", "pane", "-x", "80", "-y", "10")
    *lines, others = moving(terminal, "pane", 9)[2:]
    assert numbers(lines) == [0, 1, 2, 3, 4, 5]
    more = OTHERS.match(others)
    assert more
    assert int(more[1]) == 10
    terminal.run("resize-window", "-t", "pane", "-x", "80", "-y", "24")
    moving(terminal, "pane", 18)
    terminal.run("send-keys", "-t", "pane", "C-c")
    assert ended(terminal, "pane")[-1] == "ENDED 130"


def title_of_width(terminal: Terminal, columns: int) -> str:
    """Wait for a display of that width; return its title."""

    def find() -> str:
        drawn = frame(terminal.shows("pane"))
        return drawn[0] if drawn and len(drawn[0]) == columns else ""

    try:
        return wait_for(find, f"{columns} columns")
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *terminal.shows("pane")])) from None


def show_a_slow_transfer(pair: Pair, terminal: Terminal, address: str, seed: int) -> None:
    """Begin a transfer of `in.bin`, which takes 12 s; return when its display is there, which hides the cursor."""
    file = pair.file("in.bin", 12 * MIB, seed)
    terminal.open("pane")
    terminal.type("pane", *sending(file, address, "--connections", 4, "--rate-limit", "1MiB/s"))
    moving(terminal, "pane", 6)
    assert not terminal.has_cursor("pane")


def test_control_c_leaves_a_usable_terminal(pair: Pair, terminal: Terminal, address: str, seed: int) -> None:
    show_a_slow_transfer(pair, terminal, address, seed)
    terminal.run("send-keys", "-t", "pane", "C-c")
    shown = ended(terminal, "pane")

    assert shown[-2:] == ["interrupted: in.bin: ended by signal 2: run the same command again to resume", "ENDED 130"]
    assert shown[-3].endswith("stopped")
    assert not [line for line in shown if "in flight" in line]
    assert terminal.has_cursor("pane")
    terminal.type("pane", "echo", "and on")
    assert ended(terminal, "pane") == ["and on", "ENDED 0"]


@pytest.mark.parametrize("goes_on", ["fg", "bg"])
def test_control_z_leaves_a_usable_terminal(
    pair: Pair, terminal: Terminal, address: str, seed: int, goes_on: str
) -> None:
    """The cursor is the shell's until the command is in the foreground again."""
    show_a_slow_transfer(pair, terminal, address, seed)
    terminal.run("send-keys", "-t", "pane", "C-z")
    wait_for(lambda: any("Stopped" in line for line in terminal.shows("pane")), "it is stopped")
    assert terminal.has_cursor("pane")

    terminal.run("send-keys", "-t", "pane", f"clear; {goes_on}", "Enter")
    moving(terminal, "pane", 6)
    assert terminal.has_cursor("pane") is (goes_on == "bg")

    if goes_on == "bg":
        terminal.run("send-keys", "-t", "pane", "fg", "Enter")
    terminal.run("send-keys", "-t", "pane", "C-c")
    wait_for(lambda: any(line.startswith("interrupted: ") for line in terminal.shows("pane")), "the end")
    assert terminal.has_cursor("pane")


def test_results_of_a_receiver_that_stays_go_above_what_still_runs(pair: Pair, terminal: Terminal, seed: int) -> None:
    """Two transfers at once: the end of one does not break the picture of the other."""
    terminal.open("pane")
    where = ("--listen", "127.0.0.1:0", "--directory", pair.destination, "--metrics", "off")
    terminal.type("pane", *command("receiver", *where))
    address = address_of(terminal, "pane")
    files = [pair.file(name, 12 * MIB, seed) for name in ("quick", "slow")]
    flags = ("--connections", 2, "--chunk-size", "64KiB", "--rate-limit")
    slow = pair.sender(files[1], address, *flags, "512KiB/s")
    moving(terminal, "pane", 4)
    pair.sender(files[0], address, *flags, "8MiB/s").succeeds()
    wait_for(lambda: any(line.startswith("complete: quick: ") for line in terminal.shows("pane")), "its result")
    shown = wait_for(lambda: _with_one_bar(terminal.shows("pane")), "one transfer")
    assert [bool(CONNECTION.match(line)) for line in shown[-2:]] == [True, True]
    assert sum("in flight" in line for line in shown) == 2
    slow.end()


def _with_one_bar(shown: list[str]) -> list[str]:
    return shown if sum(bool(BAR.match(line)) for line in shown) == 1 and len(frame(shown)) == 4 else []


@pytest.mark.parametrize("piped", ["stdout", "stderr"])
def test_what_is_piped_is_for_programs(pair: Pair, terminal: Terminal, address: str, seed: int, piped: str) -> None:
    """Standard error elsewhere: log lines, and no code of a terminal. Standard output elsewhere: JSON there."""
    file = pair.file("in.bin", 12 * MIB, seed)
    terminal.open("pane")
    to = pair.logs / "piped"
    flags = ("--connections", 2, "--rate-limit", "1536KiB/s", "2>" if piped == "stderr" else ">", to)
    terminal.type("pane", *sending(file, address, *flags))
    if piped == "stdout":
        moving(terminal, "pane", 4)
    shown = ended(terminal, "pane")
    content = to.read_text()

    assert "\x1b" not in content
    assert all(line.startswith("{") for line in content.splitlines())
    if piped == "stderr":
        assert '"event": "progress"' in content
        assert shown[0].startswith("complete: in.bin: 12.0 MiB")
        assert shown[1:] == ["  bound by --rate-limit", "ENDED 0"]
    else:
        assert '"status": "complete"' in content
        assert content.count("\n") == 1
        assert any(END.match(line) for line in shown)
        assert not [line for line in shown if line.startswith("{") or "in flight" in line]


def test_tmux_is_there_in_ci() -> None:
    assert shutil.which("tmux") or os.environ.get("CI") != "true", "the Debian package tmux is missing"
