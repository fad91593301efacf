"""Trees to move, and whether they arrived: compared entry by entry, with everything that is to arrive.

Everything here goes by descriptors of directories, as trees may be deeper than a path may be long.
"""

import os
import socket
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from filestreamer.wire.limits import KIB, MIB

STAGING = b".filestreamer"
READABLE = 0 if os.geteuid() == 0 else 0o400
"""What a file's mode needs so that the user who runs the tests may read it."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Look(NamedTuple):
    """What is to be the same of an entry at both ends."""

    kind: str
    mode: int | None = None
    mtime_ns: int | None = None
    size: int = 0
    content: str = ""
    """A digest of its bytes, or the target of a symlink."""
    names: tuple[bytes, ...] = ()
    """Of a file with several names: all of those in the tree."""
    owner: tuple[int, int] | None = None


def look(root: Path, *, owner: bool = False) -> dict[bytes, Look]:
    """Look at everything below a directory, and at the directory itself, which is b""."""
    names: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    statuses: dict[bytes, os.stat_result] = {}
    found: dict[bytes, Look] = {}
    for path, directory_fd, name in _walk(os.fsencode(root)):
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        statuses[path] = status
        found[path] = _look(status, name, directory_fd)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            names[status.st_dev, status.st_ino].append(path)
    for group in names.values():
        for path in group:
            found[path] = found[path]._replace(names=tuple(sorted(group)) if len(group) > 1 else ())
    if owner:
        found = {
            path: each._replace(owner=(statuses[path].st_uid, statuses[path].st_gid)) for path, each in found.items()
        }
    return found


def _walk(root: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield each entry: its path below the root, a descriptor of its directory, its name there."""
    top = os.open(root, _DIRECTORY)
    pending = [(b"", top)]
    try:
        yield b"", top, b"."
        while pending:
            path, fd = pending.pop()
            try:
                for name in sorted(os.listdir(fd)):
                    encoded = os.fsencode(name)
                    below = path + b"/" + encoded if path else encoded
                    if encoded == STAGING:
                        continue
                    yield below, fd, encoded
                    if stat.S_ISDIR(os.stat(encoded, dir_fd=fd, follow_symlinks=False).st_mode):
                        pending.append((below, os.open(encoded, _DIRECTORY, dir_fd=fd)))
            finally:
                os.close(fd)
    finally:
        for _, fd in pending:
            os.close(fd)


def _look(status: os.stat_result, name: bytes, directory_fd: int) -> Look:
    mode = status.st_mode & 0o777
    if stat.S_ISDIR(status.st_mode):
        return Look("directory", mode, status.st_mtime_ns)
    if stat.S_ISLNK(status.st_mode):
        return Look("symlink", None, status.st_mtime_ns, content=repr(os.readlink(name, dir_fd=directory_fd)))
    if not stat.S_ISREG(status.st_mode):
        return Look("special")
    hasher = xxhash.xxh3_128()
    try:
        fd = os.open(name, os.O_RDONLY, dir_fd=directory_fd)
    except PermissionError:
        return Look("file", mode, status.st_mtime_ns, status.st_size, "not to be read")
    try:
        while block := os.read(fd, MIB):
            hasher.update(block)
    finally:
        os.close(fd)
    return Look("file", mode, status.st_mtime_ns, status.st_size, hasher.hexdigest())


def differences(source: Path, destination: Path, *but: bytes, owner: bool = False) -> list[str]:
    """Return how two trees differ, a line for each entry, `but` for entries that are to be missing at the destination.

    With an entry, everything below it is to be missing. The mtime of a directory is compared, too.
    """
    return compare(look(source, owner=owner), look(destination, owner=owner), *but)


def compare(expected: dict[bytes, Look], found: dict[bytes, Look], *but: bytes) -> list[str]:
    """Return how what was found differs from what was expected, as `differences` does."""

    def is_left_out(path: bytes) -> bool:
        return any(path == each or path.startswith(each + b"/") for each in but)

    expected = {path: each for path, each in expected.items() if not is_left_out(path)}
    for path, each in expected.items():
        if each.names:
            left = tuple(name for name in each.names if not is_left_out(name))
            expected[path] = each._replace(names=left if len(left) > 1 else ())
    lines = [f"missing: {path!r}" for path in sorted(expected.keys() - found.keys())]
    lines += [f"too much: {path!r}" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        if expected[path] != found[path]:
            lines.append(f"{path!r} is {found[path]}, not {expected[path]}")
    return lines


# ------------------------------------------------------------------------------------------------------ making trees


def write(path: Path, content: bytes, *, mode: int = 0o644, mtime_ns: int = 1_600_000_000_123_456_789) -> Path:
    """Make a file, and the directories that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, ns=(0, mtime_ns))
    return path


def sparse(path: Path, size: int, *islands: tuple[int, bytes]) -> Path:
    """Make a file of holes, with these bytes at these places."""
    with path.open("wb") as file:
        for at, content in islands:
            os.pwrite(file.fileno(), content, at)
        file.truncate(size)
    return path


def deepen(top: Path, name: bytes, times: int) -> None:
    """Make directories of this name, each in the one before, with a file `leaf` in each."""
    fd = os.open(top, _DIRECTORY)
    for _ in range(times):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, _DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
        leaf = os.open(b"leaf", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=fd)
        os.write(leaf, b"at the end")
        os.close(leaf)
    os.close(fd)


def _names(top: Path) -> None:
    for name in ("two words", " edges ", "Größe, 大きさ 🗄", "a\nb", "\n", "\x1b[2J", "-dash", "*?[x]!#\\", "x" * 255):
        write(top / name, name.encode())
    for raw in (b"\xff\xfe\x80", b"latin \xe4\xf6", b"\x01", b"y" * 255):
        write(Path(os.fsdecode(os.fsencode(top) + b"/d-" + raw[:253]) + "/in it"), raw)
        write(Path(os.fsdecode(os.fsencode(top) + b"/" + raw)), raw)


def _links(top: Path) -> None:
    top.mkdir()
    (top / "dangling").symlink_to("nowhere/at all")
    (top / "loop").symlink_to("loop")
    (top / "up").symlink_to("..")
    (top / "absolute").symlink_to("/etc/passwd")
    (top / "odd").symlink_to(os.fsdecode(b"\xff\n"))
    (top / "long").symlink_to("z/" * 2000)
    (top / "to a directory").symlink_to("dir")
    (top / "dir").mkdir()
    (top / "dir" / "back").symlink_to("../dir")
    os.utime(top / "dangling", ns=(0, 7), follow_symlinks=False)


def _hard_links(top: Path) -> None:
    for name, content in (("small", b"small"), ("empty", b""), ("large", os.urandom(300 * KIB))):
        first = write(top / f"m-{name}", content)
        os.link(first, top / f"z-{name}")
        for directory in (top / "sub", top / "a"):
            directory.mkdir(exist_ok=True)
            os.link(first, directory / name)
    os.link(sparse(top / "hollow", 200 * KIB, (100, b"x")), top / "hollow too")
    # One of its names is outside of what is sent.
    os.link(write(top.parent.parent / f"{top.parent.name}-outside", b"outside"), top / "outside")


def _holes(top: Path) -> None:
    top.mkdir()
    sparse(top / "all hole, small", 5000)
    sparse(top / "all hole, one page", 4096)
    sparse(top / "all hole, large", 5 * MIB + 1)
    sparse(top / "leading", 300 * KIB, (200 * KIB, b"end"))
    sparse(top / "trailing", 300 * KIB, (0, b"begin"))
    sparse(top / "middle", 2 * MIB + 3, (0, b"begin"), (2 * MIB, b"end"))
    sparse(top / "islands", 4 * MIB, *[(at * 128 * KIB + 77, b"island %d" % at) for at in range(0, 32, 3)])
    sparse(top / "small with a hole", 40 * KIB, (0, b"begin"), (39 * KIB, b"end"))
    sparse(top / "many", 8 * MIB, *[(at * 8 * KIB, b"x") for at in range(1024)])


def _modes(top: Path) -> None:
    for mode in (0o000, 0o200, 0o400, 0o444, 0o555, 0o777, 0o6755, 0o1644, 0o110):
        write(top / f"file {mode:o}", b"%o" % mode, mode=mode | READABLE)
    for mode in (0o555, 0o500, 0o711, 0o777, 0o1777, 0o2755):
        write(top / f"directory {mode:o}" / "in it", b"%o" % mode)
        (top / f"directory {mode:o} empty").mkdir()
        (top / f"directory {mode:o} empty").chmod(mode)
        (top / f"directory {mode:o}").chmod(mode)


def _times(top: Path) -> None:
    times = (0, 1, -1, -1_000_000_001, -(10**18), 10**9 - 1, 4_000_000_000_999_999_999, 2**31 * 10**9)
    for mtime_ns in times:
        write(top / f"file {mtime_ns}", b"x", mtime_ns=mtime_ns)
        (top / f"directory {mtime_ns}").mkdir()
        (top / f"link {mtime_ns}").symlink_to("x")
        os.utime(top / f"directory {mtime_ns}", ns=(0, mtime_ns))
        os.utime(top / f"link {mtime_ns}", ns=(0, mtime_ns), follow_symlinks=False)


def _sizes(top: Path) -> None:
    for size in (0, 1, 1023, 1024, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 512 * KIB, 512 * KIB + 1, 3 * MIB + 17):
        write(top / str(size), os.urandom(size))


def _deep(top: Path) -> None:
    top.mkdir()
    deepen(top, b"d", 300)
    (top / "empty" / "and" / "empty").mkdir(parents=True)


ODDITIES: dict[str, Callable[[Path], None]] = {
    "names": _names,
    "symlinks": _links,
    "hard links": _hard_links,
    "holes": _holes,
    "modes": _modes,
    "times": _times,
    "sizes": _sizes,
    "deep": _deep,
}


def every_oddity(top: Path) -> Path:
    """Make a tree of everything that moves; what hangs on being run by root is left to the tests."""
    top.mkdir()
    for name, make in ODDITIES.items():
        make(top / name)
    return top


def many(top: Path, files: int, size: int = 100) -> Path:
    """Make a tree of many small files, in directories of a hundred."""
    top.mkdir(parents=True)
    for number in range(files):
        directory = top / f"{number // 100:04}"
        directory.mkdir(exist_ok=True)
        (directory / str(number)).write_bytes((b"%d " % number * size)[:size])
    return top


def make_socket(path: Path) -> None:
    """Leave a socket there."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
