"""Nothing is imported from where received files lie, however a service is started there."""

import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import traps
from tests.support.certificates import Authority
from tests.support.scrape import METRICS, get, metrics_address
from tests.support.services import HANG, UNIT, Pair, Service, same

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent


class Start(NamedTuple):
    """How a command is started in a working directory, and which names Python itself imports from there."""

    words: tuple[str, ...]
    """To which the command's name is added."""
    of_python: Collection[str] = ()

    def command(self, name: str) -> list[str]:
        *words, last = self.words
        return [*words, last + name]


@pytest.fixture(params=["script", "safe", "module"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    if request.param == "script":
        return Start((f"{SCRIPTS}/",))
    if request.param == "safe":
        return Start((sys.executable, "-P", "-m", ""))
    return Start((sys.executable, "-m", ""), traps.of_python(tmp_path))


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    made = tmp_path / "marks"
    made.mkdir()
    return made


def run(pair: Pair, start: Start, name: str, *args: object, cwd: Path) -> Service:
    """Start a service as a user would in `cwd`."""
    return pair.start(name, *args, cwd=cwd, program=start.command(name))


def test_a_transfer_between_directories_of_traps(
    pair: Pair, start: Start, marks: Path, tmp_path: Path, seed: int
) -> None:
    traps.fill(pair.destination, marks, without=start.of_python)
    traps.fill(pair.source, marks, without=start.of_python)
    authority = Authority(tmp_path, "ca")
    file = pair.file("a.bin", 3_000_000, seed)
    shown = authority.issue("receiver").shown
    receiver = run(pair, start, "receiver", "--listen", "127.0.0.1:0", *METRICS, *shown, cwd=pair.destination)
    to = pair.address(receiver)
    sender = run(
        pair,
        start,
        "sender",
        "a.bin",
        "--to",
        to,
        *METRICS,
        "--metrics-linger",
        UNIT,
        *authority.trusted,
        cwd=pair.source,
    )
    receiver.wait_for("transfer_complete")
    for service in (sender, receiver):
        for path in ("/", "/transfers", "/metrics", "/healthz"):
            get(metrics_address(service), path)

    assert same(file, pair.destination / "a.bin")
    assert traps.sprung(marks) == []


def test_the_health_check_in_a_directory_of_traps(pair: Pair, start: Start, marks: Path) -> None:
    traps.fill(pair.destination, marks, without=start.of_python)
    receiver = pair.receiver(*METRICS)
    address = metrics_address(receiver)
    check = start.command("receiver.health" if "-m" in start.words else "receiver-health")
    for metrics, exit_code in ((address, 0), ("off", 0), ("127.0.0.1:1", 1)):
        done = subprocess.run(
            check,
            cwd=pair.destination,
            env={"FILESTREAMER_RECEIVER_METRICS": metrics},
            timeout=HANG,
            check=False,
        )
        assert done.returncode == exit_code
    assert traps.sprung(marks) == []


@pytest.mark.parametrize("name", ["sender", "receiver"])
def test_wrong_settings_in_a_directory_of_traps(pair: Pair, start: Start, marks: Path, name: str) -> None:
    """The ways out that import something of their own: suggestions, --help, --version."""
    traps.fill(pair.destination, marks, without=start.of_python)
    for args, exit_code in ((["--conections", "1"], 2), (["--help"], 0), (["--version"], 0)):
        done = subprocess.run(
            [*start.command(name), *args], cwd=pair.destination, capture_output=True, timeout=HANG, check=False
        )
        assert done.returncode == exit_code
    assert traps.sprung(marks) == []


@pytest.mark.parametrize("name", ["sender", "receiver"])
def test_the_long_names_are_the_same_commands(name: str) -> None:
    """`sender` alone may be another program's name: messages use the long ones."""
    programs = Path(sys.executable).parent
    said = [
        subprocess.run([programs / each, "--version"], capture_output=True, text=True, timeout=HANG, check=True).stdout
        for each in (name, f"filestreamer-{name}")
    ]
    assert said[0] == said[1] != ""


def test_a_working_directory_that_was_removed(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {sys.executable} -m sender --version"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_that_we_write_runs_python_where_files_lie() -> None:
    """`python -m` without -P is in no document, no image and no manifest, but to say what it does."""
    found = []
    for path in [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "deploy").rglob("*")]:
        if path.is_file() and path.suffix != ".json":
            found += re.findall(r"python3?[\", ]+-m[\", ]+(?:sender|receiver)\S*", path.read_text())
    assert found == []
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    assert "PYTHONSAFEPATH=1" in dockerfile
    assert 'CMD ["receiver-health"]' in dockerfile
