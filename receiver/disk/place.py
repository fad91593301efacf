"""A place: the part of a destination inside which files can be renamed, with a staging directory of its own.

Usually a destination is one place. Each mount, subvolume or project below it is another one (`filesystem.boundary`):
a file is staged in the place that it goes to, as its last step is a rename.
"""

import contextlib
import errno
import os
import secrets
import weakref
from collections.abc import Callable, Iterator
from typing import Final

from filestreamer.process.mount import mount_of
from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from receiver.disk.attributes.stored_times import StoredTimes
from receiver.disk.filesystem import inodes
from receiver.disk.filesystem.boundary import Side, side_of
from receiver.disk.filesystem.sync import syncs_each
from receiver.disk.obstacles import Obstacle
from receiver.disk.paths import NOTE_SUFFIX, OPEN_FLAGS, STAGING, staging_key
from receiver.disk.sealed_shares import SealedShares
from receiver.disk.space import SpaceLender, free_bytes

NO_LOCKS: Final = (
    "the file system has no locks (flock): files stand for them, and one of a machine that is gone is waited for"
)
"""What a place may lack."""


class Place:
    """An open directory, below which everything lies on one side of every boundary, but for places further below."""

    def __init__(self, fd: int, path: str, prefix: bytes, *, above: "Place | None" = None) -> None:
        """Take over the descriptor of the directory. `above` is the place that its parent belongs to."""
        self.fd = fd
        self._finalizer = weakref.finalize(self, os.close, fd)
        self._finalizer.atexit = False
        self.path = path
        """As messages show it."""
        self.prefix = prefix
        """The path of the directory in the destination; b"" is the destination itself."""
        self.side: Side = side_of(fd)
        self.syncs_each = syncs_each(fd)
        """Whether each file and directory has to be fsynced by itself."""
        self.space = SpaceLender()
        this = weakref.proxy(self)  # a place that nobody has any more is closed at once
        self.times = StoredTimes(
            lambda: this.open_staging(create=True),
            lambda: this.tidy(),  # noqa: PLW0108  `this.tidy` would be a method of the place itself
        )
        self._top: Place = self if above is None else above._top
        self._sealed_shares = SealedShares()
        self._new_uid: int | None = None
        self.lacking: dict[str, str] = {}
        """What was found to be missing, and has its substitute, with the text that says so; of the place at the top."""
        self.tell: Callable[[str], None] = lambda _: None
        """Called once for each of these."""

    @property
    def sealed_shares(self) -> SealedShares:
        """The shares that this process has sealed below the destination."""
        return self._top._sealed_shares

    def below(self, path: bytes) -> bytes:
        """Return a path of the destination as it is relative to this place. Files are staged under that (KEY)."""
        return path[len(self.prefix) + 1 :] if self.prefix else path

    def is_at(self, open_path: Callable[[], int]) -> bool:
        """Whether `open_path` opens this directory, and nothing is mounted over it. Raises TransferFailed(LIMIT)."""
        status = os.fstat(self.fd)
        try:
            fd = open_path()
            try:
                return os.path.samestat(os.fstat(fd), status) and mount_of(fd) == self.side.mount
            finally:
                os.close(fd)
        except OSError as error:
            failed = from_os_error(error, Code.DESTINATION, f"can't look at {self.path}")
            if failed.code is Code.LIMIT:  # nothing is known of the path
                raise failed from None
            return False

    def lacks(self, what: str) -> None:
        """Note that the file system lacks something which has its substitute: told once."""
        top = self._top
        if what not in top.lacking:
            top.lacking[what] = f"{self.path}: {what}"
            top.tell(top.lacking[what])

    def tell_lacking(self, warn: Callable[[str], None]) -> None:
        """Warn of what was found to be missing, in this transfer or in an earlier one."""
        for text in list(self._top.lacking.values()):
            warn(text)

    # --- staging

    def open_staging(self, *, create: bool) -> int:
        """Return a descriptor of the staging directory; `create` makes the directory where it is missing.

        Raises Obstacle where the directory is not safe to use, OSError.
        """
        if not create:
            return self._open_staging()
        try:
            self._make_staging()
            return self._open_staging()
        except BaseException:
            with contextlib.suppress(OSError, Obstacle):
                self._forget_note()  # nothing is staged here
            raise

    def _open_staging(self) -> int:
        try:
            fd = os.open(STAGING, os.O_RDONLY | os.O_DIRECTORY | OPEN_FLAGS, dir_fd=self.fd)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            why = f"{self.path}/{STAGING} is no directory: remove it"
            raise Obstacle(Code.DESTINATION, why, why) from None
        try:
            status = os.fstat(fd)
            problem = self._problem(side_of(fd), status)
            if problem is not None:
                why = f"{self.path}/{STAGING} {problem}"
                raise Obstacle(Code.DESTINATION, why, why)
            make_private(fd, status, 0o022)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextlib.contextmanager
    def staging_there(self) -> Iterator[int | None]:
        """Open the staging directory for a moment; None where there is none, or none that a transfer would accept."""
        try:
            fd = self.open_staging(create=False)
        except (OSError, TransferFailed):
            yield None
            return
        try:
            yield fd
        finally:
            os.close(fd)

    def _make_staging(self) -> None:
        try:
            self._note()
            os.mkdir(STAGING, 0o700, dir_fd=self.fd)
        except FileExistsError:
            return
        except OSError as error:
            raise inodes.explain(error, self.fd) from None
        self._note()  # again: another transfer may have removed the directory, and the note, just before

    def _problem(self, side: Side, status: os.stat_result) -> str | None:
        """Return why a staging directory must not be used; None where it may."""
        # A commit is a rename, and there is none across a boundary.
        if (side.device, side.mount) != (self.side.device, self.side.mount):
            return f"is on another file system than {self.path}: unmount it"
        if side != self.side:
            return f"has another project or encryption policy than {self.path}: remove it"
        is_ours = status.st_uid == os.geteuid() or status.st_uid == self._uid_of_new_files()
        return None if is_ours else "belongs to another user: remove it"

    def _uid_of_new_files(self) -> int | None:
        """Return the owner that a file shows which this process makes here, found once; None where it can make none.

        NFS with root_squash shows another one than the user of this process, and so do FAT, CIFS and bindfs with uid=.
        What another user has put there shows that only where the file system does not tell users apart.
        """
        if self._new_uid is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS
            name = f"{STAGING}-{secrets.token_hex(8)}"
            with contextlib.suppress(OSError):
                fd = os.open(name, flags, 0o600, dir_fd=self.fd)
                try:
                    self._new_uid = os.fstat(fd).st_uid  # of the file itself, whatever has the name by now
                finally:
                    os.close(fd)
                    os.unlink(name, dir_fd=self.fd)
        return self._new_uid

    def tidy(self) -> None:
        """Remove the staging directory if it is empty."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):  # another place has the same directory, and removed it
                os.rmdir(STAGING, dir_fd=self.fd)
            self._forget_note()

    # --- the note at the top: the next run of a receiver finds the staging in all places

    def _note(self) -> None:
        """Note in the staging at the top that this place has some. Raises OSError, TransferFailed."""
        # What is mounted below itself has one staging, which the note would keep.
        if self._top is self or os.path.samestat(os.fstat(self.fd), os.fstat(self._top.fd)):
            return
        staging_fd = self._top.open_staging(create=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | OPEN_FLAGS
            with open(os.open(_note_name(self.prefix), flags, 0o600, dir_fd=staging_fd), "wb") as note:
                note.write(self.prefix)
        finally:
            os.close(staging_fd)

    def _forget_note(self) -> None:
        if self._top is self:
            return
        staging_fd = self._top.open_staging(create=False)
        try:
            os.unlink(_note_name(self.prefix), dir_fd=staging_fd)
        finally:
            os.close(staging_fd)
        self._top.tidy()

    # --- space

    def free_bytes(self) -> int:
        """Return how many bytes may still be written here, including space that staged files have taken ahead."""
        return free_bytes(self.fd) + self.space.ahead_bytes()

    def close(self) -> None:
        """Close the directory. Idempotent; a place that nobody has any more is closed by itself."""
        self._finalizer()
        self.fd = -1  # another file may get the number


def make_private(fd: int, status: os.stat_result, bits: int) -> None:
    """Take these mode bits from a directory of staging, which has this status. Raises OSError.

    A file system without modes refuses that: then others may do there what they may do everywhere on it.
    """
    if not status.st_mode & bits:
        return
    try:
        os.fchmod(fd, 0o700)
    except PermissionError:
        if status.st_mode & 0o022:
            raise


def is_ours(status: os.stat_result, staging_fd: int) -> bool:
    """Return whether something belongs to us, as the open directory of staging does that it is in.

    `Place` has checked the directory. Its owner need not be the user of this process: a file system may show another.
    """
    return status.st_uid == os.fstat(staging_fd).st_uid


def _note_name(prefix: bytes) -> str:
    return staging_key(prefix) + NOTE_SUFFIX
