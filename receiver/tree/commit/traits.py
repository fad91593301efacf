"""What the file system of the destination does otherwise, found by trying it in staging at the start of a tree."""

import contextlib
import os
import resource
import unicodedata
from typing import Final, NamedTuple

from filestreamer.process.log import printable
from filestreamer.wire import limits
from receiver.disk.attributes.attributes import MODE_BITS

_MTIME_NS: Final = 1_000_000_001_000_000_000
_COARSE_NS: Final = 2_000_000_000
"""The coarsest times that a file system keeps (FAT)."""
_ALIKE: Final = (
    (b"A", b"a"),
    ("\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), "e\N{COMBINING ACUTE ACCENT}".encode()),
    (b"name", b"name."),
)
"""Names that some file systems do not tell apart: by case, by normal form, by dots at the end."""


class Traits(NamedTuple):
    """What was found."""

    dropped_bits: int = 0
    """Mode bits that a new file does not get: those of the umask, or of the directory's default ACL."""
    added_bits: int = 0
    """Mode bits that a new file has in any case: those of a file system without modes."""
    keeps_times: bool = True
    """Whether a file keeps the time that it is given."""
    folds_names: bool = False
    """Whether different names may lead to the same file."""
    largest_bytes: int = limits.FILE_SIZE_MAX
    """The largest file that the file system, and the limit of this process, allow."""


def find_traits(directory_fd: int) -> Traits:
    """Try what the file system does, with files in this directory, which are removed. Raises OSError."""
    with _File(directory_fd, b"probe", MODE_BITS) as fd:
        dropped_bits = MODE_BITS & ~os.fstat(fd).st_mode
    with _File(directory_fd, b"probe", 0) as fd:
        added_bits = MODE_BITS & os.fstat(fd).st_mode
        keeps_times = _keeps_times(fd)
        largest_bytes = _largest_bytes(fd)
    folds_names = any(takes_for_one(directory_fd, one, other) for one, other in _ALIKE)
    return Traits(dropped_bits, added_bits, keeps_times, folds_names, largest_bytes)


def takes_for_one(directory_fd: int, one: bytes, other: bytes) -> bool:
    """Whether two names lead to the same file, in a directory that has neither of them."""
    with contextlib.suppress(OSError), _File(directory_fd, one, 0o600) as fd:
        return os.path.samestat(os.fstat(fd), os.stat(other, dir_fd=directory_fd, follow_symlinks=False))
    return False


def folded(name: bytes) -> bytes:
    """Return what is equal for names that a file system may take for one."""
    if name.isascii():
        return name.lower().rstrip(b" .")
    text = unicodedata.normalize("NFD", name.decode("utf-8", "surrogateescape"))
    return unicodedata.normalize("NFD", text.casefold()).rstrip(" .").encode("utf-8", "surrogateescape")


def has_another_name(directory_fd: int, name: bytes, found: os.stat_result) -> bool:
    """Whether what was found under a name is found under one that is like it, too."""
    for other in _variants(name):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(other, dir_fd=directory_fd, follow_symlinks=False), found):
                return True
    return False


def listed_name(directory_fd: int, name: bytes, found: os.stat_result) -> bytes | None:
    """Return the name under which a directory lists what was found under `name`; None where that does not show."""
    by = alike = None
    with contextlib.suppress(OSError), os.scandir(directory_fd) as entries:
        for entry in entries:
            listed = os.fsencode(entry.name)
            if listed == name:  # whatever other names a file has that has hard links
                return name
            if entry.inode() == found.st_ino:
                by = listed
            elif folded(listed) == folded(name):  # some file systems list other inode numbers
                alike = listed
    return by or alike


def not_told_apart(name: bytes) -> str:
    """Return why an entry is declined where this is the name of what its own name leads to."""
    return f"the destination does not tell its name from that of {printable(os.fsdecode(name))}"


def _variants(name: bytes) -> list[bytes]:
    """Return other names that may lead to the same file."""
    text = name.decode("utf-8", "surrogateescape")
    cases = [text.swapcase(), text.lower(), text.upper(), text.capitalize()]
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    others = dict.fromkeys([*cases, *forms, text + ".", text.rstrip(" .")])
    return [other.encode("utf-8", "surrogateescape") for other in others if other not in (text, "")]


def _keeps_times(fd: int) -> bool:
    try:
        os.utime(fd, ns=(_MTIME_NS, _MTIME_NS))
    except OSError:
        return False
    return abs(os.fstat(fd).st_mtime_ns - _MTIME_NS) <= _COARSE_NS


def _largest_bytes(fd: int) -> int:
    """Search for the largest offset that can be sought in a file: beyond it, no byte can be written."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    low, high = 0, limits.FILE_SIZE_MAX if limit == resource.RLIM_INFINITY else min(limit, limits.FILE_SIZE_MAX)
    while low < high:
        middle = (low + high + 1) // 2
        try:
            os.lseek(fd, middle, os.SEEK_SET)
            low = middle
        except OSError:
            high = middle - 1
    return low


class _File:
    """A file that is there for a moment."""

    def __init__(self, directory_fd: int, name: bytes, mode: int) -> None:
        self._directory_fd = directory_fd
        self._name = name
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(name, flags, mode, dir_fd=directory_fd)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)
        with contextlib.suppress(OSError):
            os.unlink(self._name, dir_fd=self._directory_fd)
