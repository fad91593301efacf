"""The benchmark itself, with the pair and `cp` on little data: who is measured, what is compared, what is told."""

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench import report, run, ssh
from tests.bench.contestants import (
    Contestant,
    Place,
    Run,
    cp,
    filestreamer,
    free_port,
    free_ports,
    steady_seconds,
)
from tests.bench.data import Data, difference

TREE = Data(900, 0, files=30)


def case(tmp_path: Path, data: Data, *contestants: Contestant) -> run.Case:
    return run.Case("A case", contestants, data, str(tmp_path))


def copies(how: Callable[[Path, Path], object]) -> Contestant:
    """Return a contestant that makes copies in this way."""

    def copy(_place: Place, source: Path, target: Path) -> Run:
        how(source, target)
        return Run(1.0, 1.0, 0, 0)

    return Contestant("other", copy)


@pytest.mark.parametrize("data", [Data(300_000), TREE], ids=["file", "tree"])
def test_the_pair_beside_cp(tmp_path: Path, data: Data) -> None:
    """Every round of both is there, with figures of both ends; nothing is left behind."""
    saved = run.measure("a-case", case(tmp_path, data, filestreamer(), cp()), rounds=2)
    assert saved["failed"] == {}
    assert {who: len(took) for who, took in saved["runs"].items()} == {"filestreamer": 2, "cp": 2}
    for took in saved["runs"]["filestreamer"]:
        assert all(took[figure] > 0 for figure in ("seconds", "cpu_seconds", "client_peak_bytes", "server_peak_bytes"))
    assert list(tmp_path.iterdir()) == []


def test_the_pair_once_more(tmp_path: Path) -> None:
    """Each of the two copies into what it has copied before; the first run is not among those that count."""
    there: list[bool] = []

    def look(source: Path, target: Path) -> None:
        there.append(target.exists())
        shutil.copytree(source, target, dirs_exist_ok=True)

    again = case(tmp_path, TREE, filestreamer(), copies(look))._replace(is_again=True)
    saved = run.measure("a-case", again, rounds=2)
    assert saved["failed"] == {}
    assert {who: len(took) for who, took in saved["runs"].items()} == {"filestreamer": 2, "other": 2}
    assert there == [False, True, True]
    assert list(tmp_path.iterdir()) == []


def test_the_pair_over_tls(tmp_path: Path) -> None:
    saved = run.measure("a-case", case(tmp_path, Data(300_000), filestreamer(is_secured=True)), rounds=1)
    assert saved["failed"] == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [Data(300_000), TREE], ids=["file", "tree"])
def test_by_one_command_over_ssh(tmp_path: Path, data: Data) -> None:
    if not ssh.scp().is_there:
        assert os.environ.get("CI") != "true", "these take openssh-server and openssh-client"
        pytest.skip("sshd is not installed")
    there = [each for each in (ssh.scp(), ssh.rsync(), ssh.mscp(2), ssh.bbcp(2), ssh.escp(2)) if each.is_there]
    saved = run.measure("a-case", case(tmp_path, data, *there), rounds=1)
    assert saved["failed"] == {}
    assert list(tmp_path.iterdir()) == []


def test_cases_are_chosen_by_name_or_by_how_it_begins() -> None:
    every = run.cases("/tmp")
    assert run.chosen(["ssh"], every) == ["ssh-large", "ssh-files", "ssh-large-50ms", "ssh-files-50ms"]
    assert run.chosen(["files", "quick"], every) == ["files", "quick"]
    assert "quick" not in run.chosen([], every)
    with pytest.raises(LookupError, match="scp"):
        run.chosen(["quick", "scp"], every)


def test_copies_are_kept_until_the_round_is_over(tmp_path: Path) -> None:
    """Where removing one would be on the next one's account."""
    there: list[set[str]] = []

    def look(source: Path, target: Path) -> None:
        there.append({path.name for path in source.parent.iterdir()})
        shutil.copytree(source, target)

    rounds = case(tmp_path, TREE, cp(), copies(look))._replace(pause_seconds=0.01)
    assert run.measure("a-case", rounds, rounds=6)["failed"] == {}
    # Each of the two comes first in some rounds, and finds no copy of the round before then.
    assert len(there) == 6
    assert {frozenset(names) for names in there} == {frozenset({"source"}), frozenset({"source", "done-cp"})}
    assert list(tmp_path.iterdir()) == []


def test_scraped(tmp_path: Path) -> None:
    """The time that scrapes take is told below the table."""
    slow = filestreamer("--rate-limit", "1MB/s", metrics="scraped")
    saved = run.measure("a-case", case(tmp_path, Data(2_000_000), slow), rounds=1)
    assert saved["failed"] == {}
    assert "filestreamer: a scrape takes " in report.markdown({"a-case": saved})


def test_ports_that_clients_are_not_given() -> None:
    """One that a client has, whichever it was given, would cost who listens on several of them a second."""
    ports = free_ports(4)
    assert (len(ports), ports.step) == (4, 1)
    assert ports[-1] < free_port()
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_an_interpreter_without_the_pair_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, not_bare = tmp_path / "python3.1", tmp_path / "python3.2"
    bare.symlink_to(os.path.realpath(sys.executable))  # outside its environment it has no packages
    not_bare.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    not_bare.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = [filestreamer(python=f"python3.{minor}").is_there for minor in range(1, 4)]
    assert found == [False, True, False]


def copy_of_long_ago(source: str | Path, target: str | Path) -> None:
    shutil.copyfile(source, target)
    os.utime(target, (1, 1))


@pytest.mark.parametrize(
    ("data", "how", "why"),
    [
        (Data(5000), lambda source, target: target.write_bytes(source.read_bytes()[:-1]), "other bytes in the file"),
        (Data(5000), lambda source, target: target.write_bytes(bytes(source.stat().st_size)), "other bytes in the fi"),
        (Data(5000), copy_of_long_ago, "another mtime of the file"),
        (Data(5000), lambda *_: None, "only one has the file"),
        (TREE, lambda source, target: shutil.copytree(source, target, copy_function=copy_of_long_ago), "another mtime"),
        (TREE, lambda source, target: shutil.copytree(source, target / "deeper"), "only one has d"),
    ],
    ids=["short", "zeros", "mtime", "nothing", "mtimes of a tree", "elsewhere"],
)
def test_who_copies_wrongly_is_left_out(
    tmp_path: Path, data: Data, how: Callable[[Path, Path], object], why: str
) -> None:
    """Not in the table, but below it, with the reason; the others are measured nevertheless."""
    saved = run.measure("a-case", case(tmp_path, data, cp(), copies(how)), rounds=2)
    assert list(saved["runs"]) == ["cp"]
    assert why in saved["failed"]["other"]
    assert f"Left out: other ({why}" in report.markdown({"a-case": saved})


def look(second: float, acknowledged_bytes: int) -> dict[str, object]:
    """Return a line of progress."""
    timestamp = f"2026-01-01T00:00:{second:09.6f}Z"
    return {
        "event": "progress",
        "timestamp": timestamp,
        "acknowledged_bytes": acknowledged_bytes,
        "size_bytes": 1000,
    }


def test_the_rate_after_a_ramp() -> None:
    """Three quarters in six seconds: eight for all of it, however long the first part took, and the last."""
    log = [{"event": "connected"}, look(5.5, 100), look(10.5, 300), look(11.5, 850), {"event": "transfer_complete"}]
    assert steady_seconds("\n".join(map(json.dumps, log))) == pytest.approx(8)
    with pytest.raises(RuntimeError, match="ten seconds"):
        steady_seconds("\n".join(map(json.dumps, log[:2])))


def test_a_ramp_is_longer_than_this(tmp_path: Path) -> None:
    saved = run.measure("a-case", case(tmp_path, Data(100), cp(), filestreamer(is_steady=True)), rounds=1)
    assert "ten seconds" in saved["failed"]["filestreamer"]


def test_who_fails_is_left_out(tmp_path: Path) -> None:
    """With what it said."""
    failing = filestreamer("--no-such-flag")
    saved = run.measure("a-case", case(tmp_path, Data(100), cp(), failing), rounds=1)
    assert list(saved["runs"]) == ["cp"]
    assert "--no-such-flag" in saved["failed"]["filestreamer"]


def test_data(tmp_path: Path) -> None:
    """As many files as asked for, of the sizes asked for; the same ones each time."""
    total = TREE.make(tmp_path / "one")
    sizes = [path.stat().st_size for path in (tmp_path / "one").rglob("file-*")]
    assert len(sizes) == TREE.files
    assert sum(sizes) == total
    assert max(sizes) <= TREE.most_bytes
    TREE.make(tmp_path / "two")
    assert difference(tmp_path / "one", tmp_path / "two", times=False) == ""


def a_run(seconds: float) -> dict[str, object]:
    return Run(seconds, 3.0, 5 << 20, 7 << 20)._asdict()


def saved_case(name: str, title: str, runs: dict[str, list[float]]) -> report.Saved:
    return {
        "case": name,
        "title": title,
        "bytes": 1 << 30,
        "files": 1,
        "rounds": 3,
        "machine": {"cpus": 2, "kernel": "6", "python": "3"},
        "ours": ["filestreamer"],
        "verifies": ["filestreamer"],
        "failed": {},
        "runs": {who: [a_run(each) for each in seconds] for who, seconds in runs.items()},
    }


def test_ratios_are_those_of_one_round(tmp_path: Path) -> None:
    """Median, least and most of the rounds' ratios, not the ratio of medians; cases of other runs stay."""
    large = saved_case("large", "Large", {"filestreamer": [2.0, 9.0, 1.0], "cp": [1.0, 3.0, 2.0]})
    link = saved_case("link-10ms-0", "1 GiB over 10 ms", {"filestreamer": [2.0, 2.0, 2.0]})
    run.save(tmp_path, link)
    run.save(tmp_path, large)
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["link-10ms-0", "large"]
    written = (tmp_path / "results.md").read_text()
    assert "| filestreamer | 2000 | 537 | 0.50 (0.33 to 2.00) | 1.00 (1.00 to 1.00) | 3.00 | 5 + 7 | yes |" in written
    assert "| cp | 2000 | 537 | 1.00 (1.00 to 1.00) | 0.50 (0.33 to 2.00) | 3.00 | 5 + 7 | no |" in written
    assert ">0.50<" in (tmp_path / "speed.svg").read_text()
    assert ">537<" in (tmp_path / "links.svg").read_text()
