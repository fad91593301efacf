"""The pair beside its peers, on the same data, interleaved, every copy compared: `make bench`.

    make bench                                   every case that this machine can run
    make bench ARGS=quick                        the pair and cp, 1 GiB: half a minute
    make bench ARGS="large files --rounds 3"     some cases
    make bench ARGS=ssh                          all cases whose names begin with ssh-
    make bench ARGS="large --only cp,rsync"      the pair and those

Prints a table for each case. All runs, tables and pictures are in build/bench: results.json, results.md, speed.svg and
links.svg. Cases that are measured again replace what is there, others stay.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from filestreamer.wire.limits import GIB, KIB, MIB
from tests.bench import contestants as c
from tests.bench import report, ssh
from tests.bench.data import Data, difference
from tests.bench.link import LINKS, Link, link

RAM_DISK: Final = "/dev/shm"
TOKEN: Final = "a token of the benchmark, which is long enough"
REUSE_SECONDS: Final = 65
"""ext4 takes no inode again that was freed less than a minute ago, and finding others takes it CPU time: whoever comes
after a tree was removed would pay for that."""


class Case(NamedTuple):
    """Some contestants on the same data; the first of them is the pair."""

    title: str
    contestants: tuple[c.Contestant, ...]
    data: Data
    directory: str = RAM_DISK
    over: Link | None = None
    """A long link between two network namespaces; None is loopback."""
    pause_seconds: float = 0
    """Where there is a pause after each round, copies are removed before it, and not after each run."""
    most_rounds: int | None = None
    is_optional: bool = False
    """Measured only when it is asked for."""
    is_again: bool = False
    """Whether each copies once more what it has copied before: its copy stays, and the first run is not measured."""


def pairs(flag: str, *values: object) -> tuple[c.Contestant, ...]:
    """Return the pair with each of these values of a flag."""
    return tuple(c.filestreamer(flag, value, name=f"{flag} {value}") for value in values)


def one_command(connections: int) -> tuple[c.Contestant, ...]:
    """Return who starts the far side over ssh; each of several connections has as many."""
    return (
        ssh.filestreamer("--via", "direct", name="direct, TLS"),
        ssh.filestreamer("--via", "direct", "--no-tls", name="direct, no TLS"),
        ssh.filestreamer("--via", "ssh", name="via ssh"),
        ssh.scp(),
        ssh.rsync(),
        ssh.mscp(connections),
        ssh.bbcp(connections),
        ssh.escp(connections),
    )


def cases(disk: str) -> dict[str, Case]:
    """Return every case by name."""
    ours = c.filestreamer()
    verifying = (c.rsync(), c.wdt(), c.xrootd(is_checked=True))
    peers = (c.socat(), c.mbuffer(), c.fastsync(), c.gridftp(), c.gridftp(4), c.rclone(), c.xrootd(), *verifying)
    by_tar = (c.socat(with_tar=True), c.mbuffer(with_tar=True))
    for_trees = (c.cp(), *by_tar, c.gridftp(4), c.rsync(), c.wdt(), c.rclone(), c.xrootd())
    pythons = tuple(f"python3.{minor}" for minor in range(11, 15))
    on_each = tuple(c.filestreamer(name=each, python=each) for each in pythons)
    small, tiny = Data(64 * KIB, 4 * KIB, files=10_000), Data(KIB, 0, files=1_000_000)
    synced = c.cp(is_synced=True)
    found = {
        "quick": Case("1 GiB, RAM disk to RAM disk", (ours, c.cp()), Data(GIB), is_optional=True),
        "large": Case(
            "4 GiB, RAM disk to RAM disk", (ours, c.cp(), *peers, c.iperf3(2), c.original(4, 1024)), Data(4 * GIB)
        ),
        "disk": Case("4 GiB on disk", (ours, c.cp(), synced, *peers), Data(4 * GIB), disk),
        "files": Case("10 000 files of 4 to 64 KiB, RAM disk", (ours, *for_trees), small),
        "files-disk": Case(
            "10 000 files of 4 to 64 KiB on disk", (ours, synced, *for_trees), small, disk, pause_seconds=REUSE_SECONDS
        ),
        "million": Case("1 000 000 files of 0 to 1 KiB, RAM disk", (ours, *for_trees), tiny, is_optional=True),
        "million-disk": Case(
            "1 000 000 files of 0 to 1 KiB on disk",
            (ours, *for_trees),
            tiny,
            disk,
            pause_seconds=REUSE_SECONDS,
            is_optional=True,
        ),
        "again": Case(
            "200 000 files of 0 to 1 KiB, all there and unchanged, RAM disk",
            (ours, c.rsync()),
            Data(KIB, 0, files=200_000),
            is_again=True,
        ),
        "start": Case("1 KiB: what starting costs", (ours, c.cp(), *peers), Data(KIB)),
        "start-pythons": Case("1 KiB, by interpreter", (ours, *on_each), Data(KIB), is_optional=True),
        "files-pythons": Case("10 000 files, by interpreter", (ours, *on_each), small, is_optional=True),
        "start-100ms": Case(
            "1 KiB over 100 ms: the round-trips before and behind it",
            (
                c.filestreamer(name="no token"),
                c.filestreamer(name="token", token=TOKEN),
                c.filestreamer(name="TLS", is_secured=True),
                c.wdt(1),
                c.rsync(),
                c.socat(),
            ),
            Data(KIB),
            over=Link(100, 0),
        ),
        "connections": Case(
            "2 GiB by connections", (*pairs("--connections", "auto", 1, 2, 4, 8, 16, 64), c.cp()), Data(2 * GIB)
        ),
        "chunks": Case(
            "512 MiB by chunk size",
            (*pairs("--chunk-size", "4MiB", "1KiB", "4KiB", "16KiB", "64KiB", "256KiB", "1MiB", "64MiB"), c.cp()),
            Data(512 * MIB),
        ),
        "tls": Case(
            "2 GiB, encrypted or not",
            (
                c.filestreamer(name="TLS", is_secured=True),
                c.filestreamer(name="no TLS"),
                c.wdt(is_encrypted=True),
                c.wdt(),
                c.socat_tls(),
                ssh.scp(),
            ),
            Data(2 * GIB),
        ),
        "small-chunks": Case(
            "200 MB in chunks of 1 KiB, 5 connections",
            (c.filestreamer("--chunk-size", "1KiB", "--connections", 5), c.cp(), c.original(5, 1)),
            Data(200_000_000),
        ),
        "scrapes": Case(
            "4 GiB over 64 connections, scraped or not",
            (
                c.filestreamer("--connections", 64, name="not scraped", metrics="served"),
                c.filestreamer("--connections", 64, name="scraped", metrics="scraped"),
            ),
            Data(4 * GIB),
        ),
        "settings": Case(
            "1 GiB: which settings are the best ones of each peer",
            (
                ours,
                c.cp(),
                *map(c.socat, (64, 256, 1024)),
                *map(c.gridftp, (1, 2, 4)),
                *map(c.xrootd, (1, 4)),
                *map(c.wdt, (1, 2, 4)),
                *map(c.iperf3, (1, 2, 4)),
            ),
            Data(GIB),
            is_optional=True,
        ),
    }
    for end, between in (("", None), ("-50ms", LINKS["50ms-0.01"])):
        where = "" if between is None else f" over {between}"
        by_ssh = one_command(2 if between is None else 8)
        found[f"ssh-large{end}"] = Case(f"1 GiB by one command{where}", by_ssh, Data(GIB), over=between)
        # Over a long link several peers take some round-trips for each file.
        found[f"ssh-files{end}"] = Case(
            f"10 000 files of 4 to 64 KiB by one command{where}",
            by_ssh,
            small,
            over=between,
            most_rounds=1 if between else None,
            is_optional=between is not None,
        )
    for gib in (1, 16):
        many = c.filestreamer("--connections", 64, name="64 connections")
        found[f"memory-{gib}"] = Case(
            f"Memory: {gib} GiB over 64 connections", (many,), Data(gib * GIB), disk, most_rounds=1
        )
    for name, each in LINKS.items():
        beside = (c.socat(), c.fastsync(8), c.gridftp(8), c.xrootd(8), c.wdt(8), c.iperf3(8))
        over = (*pairs("--connections", "auto", 1, 4, 8, 16), *beside)
        found[f"link-{name}"] = Case(f"512 MiB over {each}", over, Data(512 * MIB), over=each)
        ramped = [
            c.filestreamer("--connections", number, name=f"--connections {number}", is_steady=True)
            for number in ("auto", 4, 8, 16)
        ]
        title = f"The rate after 5 s over {each}"
        found[f"steady-{name}"] = Case(title, tuple(ramped), Data(2 * GIB), over=each, is_optional=True)
    return found


def main() -> None:
    """Measure the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "case", nargs="*", help="which, or how several begin; default: all but the optional ones (%(prog)s --list)"
    )
    parser.add_argument("--list", action="store_true", help="list the cases, and measure nothing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="parts of peers' names, with commas between; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the bytes, or of a tree the files")
    parser.add_argument("--disk", default=tempfile.gettempdir(), help="a directory on disk (%(default)s)")
    parser.add_argument("--save", type=Path, default=Path("build/bench"), help="a directory (%(default)s)")
    settings = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and all is cleaned up
    every = cases(settings.disk)
    if settings.list:
        for name, case in every.items():
            print(f"{name:17}{case.title}{' (optional)' * case.is_optional}")
        return
    try:
        names = chosen(settings.case, every)
    except LookupError as error:
        parser.error(f"no such case: {error}")
    wanted = [part for part in settings.only.split(",") if part]
    has_failed = False
    for name in names:
        case = every[name]
        first, *others = case.contestants
        others = [
            each for each in others if each.is_there and (not wanted or any(part in each.name for part in wanted))
        ]
        case = case._replace(contestants=(first, *others))
        if settings.scale != 1:
            title = f"{case.title}, {settings.scale:g} of it"
            case = case._replace(title=title, data=case.data.scaled(settings.scale))
        copies = len(case.contestants) if case.pause_seconds or case.is_again else 1
        room_bytes = case.data.room_bytes * (1 + copies)
        if shutil.disk_usage(case.directory).free < room_bytes:
            print(f"\n{name}: left out, needs {room_bytes / GIB:.1f} GiB in {case.directory}")
            continue
        saved = measure(name, case, min(settings.rounds, case.most_rounds or settings.rounds))
        save(settings.save, saved)
        print("", *report.table(saved), sep="\n", flush=True)
        has_failed |= bool(saved["failed"])
    sys.exit(has_failed)


def chosen(asked: Sequence[str], every: Mapping[str, Case]) -> list[str]:
    """Return the cases of these names, or that begin so (`ssh`: `ssh-large`, ...); of none, all but the optional ones.

    Raises LookupError with a name that is neither.
    """
    if not asked:
        return [name for name, case in every.items() if not case.is_optional]
    found = []
    for each in asked:
        names = [each] if each in every else [name for name in every if name.startswith(f"{each}-")]
        if not names:
            raise LookupError(each)
        found += names
    return found


def measure(name: str, case: Case, rounds: int) -> report.Saved:
    """Run a case; return what is saved of it. Who fails, or makes another copy than was asked for, is left out."""
    runs: dict[str, list[c.Run]] = {each.name: [] for each in case.contestants}
    failed: dict[str, str] = {}
    with directory(case.directory) as root, link(case.over) as ends:
        total = case.data.make(root / "source")
        place = ends._replace(fills_bytes=total)
        for number in range(rounds):
            for each in shuffled(case.contestants, f"{name} {number}"):
                if each.name in failed:
                    continue
                try:
                    runs[each.name].append(turn(each, case, place, root))
                except (OSError, RuntimeError) as error:
                    failed[each.name] = str(error)
                    del runs[each.name]
                clear(each, case, root)
            for done in root.glob("done-*"):
                remove(done)
            if number + 1 < rounds and case.pause_seconds:
                os.sync()
                time.sleep(case.pause_seconds)
    return {
        "case": name,
        "title": case.title,
        "bytes": total,
        "files": case.data.files,
        "rounds": rounds,
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "ours": [each.name for each in case.contestants if each.is_ours],
        "verifies": [each.name for each in case.contestants if each.verifies],
        "failed": failed,
        "runs": {who: [run._asdict() for run in took] for who, took in runs.items()},
    }


def turn(each: c.Contestant, case: Case, place: c.Place, root: Path) -> c.Run:
    """Run one of them once."""
    target = root / "target"
    if case.is_again:
        target = root / f"again-{each.name}"
        if not target.exists():
            one_run(each, place, root / "source", target)
    if case.directory != RAM_DISK:
        os.sync()  # what others wrote is not on this one's account
    return one_run(each, place, root / "source", target)


def clear(each: c.Contestant, case: Case, root: Path) -> None:
    """Remove the copy of a run, or set it aside until the round is over."""
    if not case.pause_seconds:
        remove(root / "target")
    elif (root / "target").exists():
        (root / "target").rename(root / f"done-{each.name}")


def one_run(each: c.Contestant, place: c.Place, source: Path, target: Path) -> c.Run:
    """Run one of them once, and compare its copy, if it makes one."""
    run = each.run(place, source, target)
    if each.makes_copy and (differs := difference(source, target, times=each.keeps_times)):
        raise RuntimeError(differs)
    return run


@contextlib.contextmanager
def directory(where: str) -> Iterator[Path]:
    """Make a directory for the files of a case, and remove it."""
    root = Path(tempfile.mkdtemp(dir=where, prefix="filestreamer-bench-"))
    try:
        yield root
    finally:
        shutil.rmtree(root)


def remove(path: Path) -> None:
    """Remove a file or a tree, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def shuffled(contestants: tuple[c.Contestant, ...], seed: str) -> list[c.Contestant]:
    """Return them in an order of chance, the same for each seed: who runs next finds what the one before has left."""
    return random.Random(seed).sample(contestants, len(contestants))


def save(where: Path, saved: dict[str, Any]) -> None:
    """Put a case beside those that were measured before, and write tables and pictures of all anew."""
    where.mkdir(parents=True, exist_ok=True)
    file = where / "results.json"
    results = {**(json.loads(file.read_text()) if file.exists() else {}), saved["case"]: saved}
    texts = {
        "results.json": json.dumps(results, indent=1) + "\n",
        "results.md": report.markdown(results),
        "speed.svg": report.speeds(results),
        "links.svg": report.links(results),
    }
    for name, text in texts.items():
        if text:
            (where / name).write_text(text)


if __name__ == "__main__":
    main()
