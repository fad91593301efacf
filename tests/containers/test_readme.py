"""The `docker run` lines of deploy/README.md, as typed. Those that build are what all images here are built with."""

import os
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.containers import documented, inspect, run, started
from tests.support.disks import MIB
from tests.support.services import UNIT, make_file, same

FROM_ONE_MACHINE_TO_ANOTHER, A_DIRECTORY, BETWEEN_TWO_CONTAINERS = range(3)


@pytest.fixture
def file(images: None, tmp_path: Path, seed: int) -> Path:
    """Return the file that the examples send, in the directory that they are typed in."""
    return make_file(tmp_path / "big.iso", 20 * MIB, seed)


def test_between_two_containers(file: Path, seed: int) -> None:
    """As typed, but for the names: another container of this machine may be called receiver, or be left of a run."""
    names = {"receiver": f"receiver-{os.getpid()}-{seed}", "transfer": f"transfer-{os.getpid()}-{seed}"}
    typed = documented("Run")[BETWEEN_TWO_CONTAINERS]
    for before in ("--name {receiver}", "--to {receiver}:", "docker wait {receiver}", "docker rm {receiver}"):
        typed = typed.replace(before.format(receiver="receiver"), before.format(**names))
    typed = re.sub(r"(network create|network rm|--network) transfer\b", rf"\1 {names['transfer']}", typed)
    try:
        run(typed, cwd=file.parent)
    except BaseException:
        run(f"docker rm --force {names['receiver']}; docker network rm {names['transfer']} || true")
        raise
    assert same(file, file.parent / "incoming/big.iso")


@pytest.fixture
def directory(file: Path, seed: int) -> Path:
    """Return the directory that the examples send, beside the file."""
    top = file.parent / "photos"
    for at in range(100):
        (top / f"{at % 7}").mkdir(parents=True, exist_ok=True)
        make_file(top / f"{at % 7}/{at}.jpg", at * 1000, seed + at)
    make_file(top / "large", 9 * MIB, seed)
    return top


def test_from_one_machine_to_another(file: Path, directory: Path) -> None:
    """This machine is both: the name of the other one becomes the address at which containers reach it."""
    receive, send = documented("Run")[FROM_ONE_MACHINE_TO_ANOTHER].split("\n\n")
    with started(receive, cwd=file.parent) as receiver:
        try:
            assert receiver.stderr
            (token,) = re.findall(
                r"FILESTREAMER_TOKEN=(\S+) filestreamer-sender FILE", "".join(_until_token(receiver.stderr))
            )
            container = inspect("ps", "--quiet", "--filter", "publish=7800")
            here = inspect("inspect", container, "--format", "{{.NetworkSettings.Gateway}}")
            for typed in (send, documented("Run")[A_DIRECTORY]):
                run(typed.replace("receiver.example", here), cwd=file.parent, env={"FILESTREAMER_TOKEN": token})
        finally:
            receiver.send_signal(signal.SIGTERM)  # which `docker run` passes on
        assert receiver.wait(UNIT) == 143
    arrived = file.parent / "incoming"
    assert same(file, arrived / "big.iso")
    files = [path.relative_to(directory.parent) for path in directory.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(path.relative_to(arrived) for path in arrived.rglob("photos/**/*") if path.is_file())
    assert all(same(file.parent / path, arrived / path) for path in files)


def _until_token(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if "FILESTREAMER_TOKEN" in line:
            return


def test_the_readme_has_the_same_lines() -> None:
    """What the first page shows is what is run here."""
    top = Path(__file__).parents[2]
    shown = re.findall("^docker run .*$", (top / "README.md").read_text(), re.MULTILINE)
    run_here = documented("Run")[FROM_ONE_MACHINE_TO_ANOTHER].splitlines()
    assert len(shown) == 2
    assert set(shown) <= set(run_here)
