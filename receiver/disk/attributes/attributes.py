"""Owner, ACL, mode, extended attributes and times of files, directories and symlinks: one order for all of them.

    owner           first: chown(2) takes setuid, setgid and capabilities away
    access ACL      before the mode: without it, the mode would give the owning group what the ACL gives to others
    mode            with setuid and setgid of a file only where its owner is exactly that of the entry
    other xattrs    capabilities as the last ones
    times           at the end, so that nothing changes them

A file is made with a mode that is no wider than that of its entry, and has its final name only after all of this. What
is privileged (owners, setuid and setgid of files, `trusted.*`, `security.*`) is set only where the receiver's own user
allows it: a sender's wish never suffices. What a flag of the sender's user asked for, and can't be set, is reported.

Everything goes through open descriptors: a name may lead to something else by the time that it is used.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from filestreamer.wire.messages import Entry, EntryType, Xattr
from filestreamer.wire.xattr_parts import FILE_SYSTEM_NAMES
from receiver.disk.attributes import acl
from receiver.disk.attributes.policy import AttributePolicy, AttributeReport
from receiver.disk.attributes.stored_times import StoredTimes
from receiver.disk.obstacles import BROKEN

MODE_BITS: Final = 0o777
"""The bits of a sender's mode that are applied to everything."""
DIRECTORY_BITS: Final = stat.S_ISGID | stat.S_ISVTX
"""Bits of directories that are kept, too: from the entry, and from a directory that is there."""
_PRIVILEGED_BITS: Final = stat.S_ISUID | stat.S_ISGID
"""Bits of files that run them as their owner."""
_BROKEN: Final = BROKEN | {errno.EROFS}
"""Errors of the disk, which end the transfer, whatever was to be set."""
_FATAL: Final = _BROKEN | {errno.ENOSPC, errno.EDQUOT}
"""Those of an owner. Extended attributes have a place of their own: that it is full says nothing of the disk."""
_ABSENT: Final = (errno.ENOTSUP, errno.ENODATA, errno.ENOSYS)
_CAPABILITY: Final = b"security.capability"
_FLAG: Final = "--allow-privileged"
_NOT_ALLOWED: Final = f"the receiver does not have {_FLAG}, which owners, setuid bits and capabilities need"
_NO_BITS: Final = f"setuid and setgid bits of files are set only with --owner, and a receiver that has {_FLAG}"
_NO_LABELS: Final = f"security labels (security.*) of files are set only by a receiver that has {_FLAG}"
_NAMES_SHOWN: Final = 3

This = int | str
"""What a call is about: a descriptor, or the /proc path of an O_PATH descriptor, which such calls refuse."""
XattrsOf = Callable[[int], Sequence[Xattr]]
"""Returns the extended attributes of an entry, by its file_id."""


def owner(entry: Entry) -> tuple[int, int]:
    """Return the (uid, gid) that an entry asks for; -1 leaves the one that the file has."""
    return (-1 if entry.uid is None else entry.uid, -1 if entry.gid is None else entry.gid)


class Attributes:
    """Sets the attributes of the entries of one transfer. Any thread may call. All methods raise OSError, Obstacle."""

    def __init__(
        self, report: AttributeReport, *, allow_privileged: bool = False, xattrs_of: XattrsOf | None = None
    ) -> None:
        """`xattrs_of` is None where the sender does not keep extended attributes: those that are there stay."""
        self._report = report
        self._policy = AttributePolicy(report)
        self._allow_privileged = allow_privileged
        self._xattrs_of = xattrs_of

    # --- what is there

    def put_file(self, fd: int, entry: Entry, file_id: int) -> None:
        """Give an open file that is complete everything that its entry has."""
        self.tell(entry, file_id, self.try_file(fd, entry, file_id))

    def try_file(self, fd: int, entry: Entry, file_id: int, *, mode_is_right: bool = False) -> Sequence[str]:
        """Do as `put_file`; return what could not be set, for `tell`: the file may still turn out to be damaged.

        `mode_is_right` saves a call where the file was created with the permission bits of its mode.
        """
        reasons: Sequence[str] = ()
        is_plain = entry.uid is None and entry.gid is None and not entry.mode & _PRIVILEGED_BITS
        if not is_plain or self._xattrs_of is not None:
            reasons = self._put(fd, entry, file_id, os.fstat(fd), kept_bits=0)
        elif not mode_is_right:
            self._policy.set_mode(fd, entry, entry.mode & MODE_BITS)
        self._policy.set_times(fd, entry)
        return reasons

    def tell(self, entry: Entry, file_id: int, reasons: Sequence[str]) -> None:
        """Report what could not be set of an entry, once for each entry."""
        if reasons:
            self._report.skip_attribute(file_id, entry.path, "; ".join(reasons))

    def put_directory(self, fd: int, entry: Entry, file_id: int) -> None:
        """Give an open directory, new or not, everything that its entry has, now that nothing is made in it any more.

        Its own setgid and sticky bits stay: who uses the directory relies on them.
        """
        there = os.fstat(fd)
        reasons = self._put(fd, entry, file_id, there, kept_bits=there.st_mode & DIRECTORY_BITS)
        self._policy.set_times(fd, entry)
        self.tell(entry, file_id, reasons)

    def put_symlink(self, directory_fd: int, name: str | bytes, entry: Entry, file_id: int) -> None:
        """Give a symlink itself everything that its entry has; it has no mode."""
        with _reopened(name, directory_fd) as (this, there):
            reasons: list[str] = []
            is_owned = self._put_owner(this, entry, there, reasons)
            if self._xattrs_of is not None:
                self._put_xattrs(this, self._xattrs_of(file_id), reasons, is_owned=is_owned)
            self._policy.set_times(this, entry)
            self.tell(entry, file_id, reasons)

    def has_all(self, there: os.stat_result, entry: Entry) -> bool:
        """Whether a file has all that its entry asks for, as nearly every one has that stays; False: it may have it."""
        return (
            there.st_mtime_ns == entry.mtime_ns
            and stat.S_IMODE(there.st_mode) == entry.mode <= MODE_BITS
            and entry.uid in (None, there.st_uid)
            and entry.gid in (None, there.st_gid)
            and self._xattrs_of is None
        )

    def correct_file(
        self,
        directory_fd: int,
        name: bytes,
        entry: Entry,
        file_id: int,
        there: os.stat_result,
        *,
        times: StoredTimes | None = None,
        syncs: bool = False,
    ) -> None:
        """Set what differs of a file that stays as it is; `there` is its stat(2), with `times`, its mtime, too.

        With `syncs` a file that was changed is fsynced, as no sync of the whole file system reaches it.
        Setuid and setgid bits that the file and its entry have stay, unless its owner is to be another.
        """
        if self.has_all(there, entry):
            return
        uid, gid = owner(entry)
        is_owned = uid in (-1, there.st_uid) and gid in (-1, there.st_gid)
        kept_bits = there.st_mode & entry.mode & _PRIVILEGED_BITS if is_owned else 0
        mode = entry.mode & MODE_BITS | kept_bits
        is_right = is_owned and stat.S_IMODE(there.st_mode) == mode and entry.mode & _PRIVILEGED_BITS == kept_bits
        is_dated = times is None or (
            times.is_same(directory_fd, there, entry.mtime_ns) or not times.keeps_times(directory_fd, there.st_dev)
        )
        if is_right and is_dated and self._xattrs_of is None:
            return
        with _reopened(name, directory_fd) as (this, now):
            if not (stat.S_ISREG(now.st_mode) and os.path.samestat(now, there)):
                raise OSError(errno.EBUSY, "another process replaced it meanwhile")
            reasons: Sequence[str] = ()
            if not is_right or self._xattrs_of is not None:
                reasons = self._put(this, entry, file_id, now, kept_bits=kept_bits)
            if not is_dated:
                self._policy.set_times(this, entry)
            if syncs:
                _sync(this)
            self.tell(entry, file_id, reasons)

    def new_directory_mode(self, entry: Entry, file_id: int) -> int:
        """Return the mode to make a directory with: no wider than what it has at the end, and sticky from the first."""
        if self._xattrs_of is not None and self._xattrs_of(file_id):
            return entry.mode & stat.S_IRWXU  # it may have an ACL, which gives its group less than its mode says
        return entry.mode & (MODE_BITS | stat.S_ISVTX)

    # --- in this order

    def _put(self, this: This, entry: Entry, file_id: int, there: os.stat_result, *, kept_bits: int) -> list[str]:
        """Set all but the times; return what could not be set. `kept_bits` are special bits that stay."""
        reasons: list[str] = []
        is_owned = self._put_owner(this, entry, there, reasons)
        xattrs = self._xattrs_of(file_id) if self._xattrs_of is not None else ()
        mode = entry.mode & MODE_BITS
        if self._xattrs_of is not None:
            mode = self._put_acl(this, xattrs, mode, reasons)
        mode |= self._special_bits(entry, is_owned=is_owned, kept_bits=kept_bits)
        self._put_mode(this, entry, mode, reasons)
        if self._xattrs_of is not None:
            self._put_xattrs(this, xattrs, reasons, is_owned=is_owned)
        return reasons

    def _put_owner(self, this: This, entry: Entry, there: os.stat_result, reasons: list[str]) -> bool:
        """Set the owner, where it differs; return whether it is exactly the one that the entry has."""
        uid, gid = owner(entry)
        if uid not in (-1, there.st_uid) or gid not in (-1, there.st_gid):
            problem = _NOT_ALLOWED
            if self._allow_privileged:
                try:
                    os.chown(this, uid, gid)
                    now = os.stat(this)
                    problem = (
                        "" if uid in (-1, now.st_uid) and gid in (-1, now.st_gid) else "its file system keeps none"
                    )
                except OSError as error:
                    if error.errno in _FATAL:
                        raise
                    problem = error.strerror or str(error)
            if problem:
                wanted = ":".join("" if number < 0 else str(number) for number in (uid, gid))
                reasons.append(f"its owner is not set to {wanted}: {problem}")
                return False
        return entry.uid is not None and entry.gid is not None

    def _special_bits(self, entry: Entry, *, is_owned: bool, kept_bits: int) -> int:
        if entry.type is EntryType.DIRECTORY:
            return entry.mode & DIRECTORY_BITS | kept_bits
        wanted = entry.mode & _PRIVILEGED_BITS
        if is_owned and self._allow_privileged:
            return wanted
        if wanted != kept_bits:
            self._report.warn(_NO_BITS)
        return kept_bits

    def _put_mode(self, this: This, entry: Entry, mode: int, reasons: list[str]) -> None:
        there = os.stat(this)
        if stat.S_IMODE(there.st_mode) == mode:
            return
        is_directory = stat.S_ISDIR(there.st_mode)
        if is_directory and mode & stat.S_ISGID and not _may_keep_setgid(there.st_gid):
            # The kernel would take the bit away. Then new files in the directory would get another group.
            self._report.warn(
                "the mode of some directories stays as it is: they hand down (setgid) a group that the receiver's user"
                " is not in, and would not do so any more"
            )
            return
        self._policy.set_mode(this, entry, mode)
        if mode & _PRIVILEGED_BITS and stat.S_IMODE(os.stat(this).st_mode) != mode:
            reasons.append("its setuid or setgid bit can't be set")

    def _put_acl(self, this: This, xattrs: Sequence[Xattr], mode: int, reasons: list[str]) -> int:
        """Set the access ACL, or remove the one that is there; return the permission bits that go with it."""
        value = next((xattr.value for xattr in xattrs if xattr.name == acl.ACCESS), None)
        if value is not None:
            try:
                os.setxattr(this, acl.ACCESS, value)
            except OSError as error:
                if error.errno in _BROKEN:
                    raise
                reasons.append(f"its ACL is not set: {error.strerror or error}")
                # The group bits of the mode are the most that the ACL gives anybody: the owning group may have less.
                return acl.narrowed(mode, value)
            return mode
        with contextlib.suppress(OSError):  # nearly always there is none
            os.getxattr(this, acl.ACCESS)
            # Without its ACL, the mode of the file gives the owning group what the ACL gave others.
            os.chmod(this, stat.S_IMODE(os.stat(this).st_mode) & ~stat.S_IRWXG)
            os.removexattr(this, acl.ACCESS)
        return mode

    def _put_xattrs(self, this: This, xattrs: Sequence[Xattr], reasons: list[str], *, is_owned: bool) -> None:
        """Set all extended attributes but the access ACL; remove those that the source does not have."""
        failed: dict[bytes, str] = {}
        try:
            names = {os.fsencode(name) for name in os.listxattr(this)} - FILE_SYSTEM_NAMES
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            names = set()
        wanted = {xattr.name: xattr.value for xattr in xattrs if xattr.name != acl.ACCESS}
        for name in names - wanted.keys():
            if self._is_kept_exact(name):
                _try(this, failed, name, lambda name=name: os.removexattr(this, name))  # type: ignore[misc]
        for name in sorted(wanted, key=lambda name: name == _CAPABILITY):
            value = wanted[name]
            with contextlib.suppress(OSError):
                if name in names and os.getxattr(this, name) == value:
                    continue
            problem = self._forbidden(name, is_owned=is_owned)
            if problem is None:
                _try(this, failed, name, lambda name=name, value=value: os.setxattr(this, name, value))  # type: ignore[misc]
            elif problem:
                failed[name] = problem
        if failed:
            reasons.append(_told(failed))

    def _is_kept_exact(self, name: bytes) -> bool:
        """Whether an attribute is removed where the source does not have it."""
        if name == acl.DEFAULT or name.startswith(b"user."):
            return True
        return self._allow_privileged and (name == _CAPABILITY or name.startswith(b"trusted."))

    def _forbidden(self, name: bytes, *, is_owned: bool) -> str | None:
        """Return why an attribute is not set; "" where that was told already; None where it may be set."""
        if name == acl.DEFAULT or name.startswith(b"user."):
            return None
        if not name.startswith((b"trusted.", b"security.")) or name in FILE_SYSTEM_NAMES:
            return "it is of a kind that is not kept"
        if not self._allow_privileged:
            if name == _CAPABILITY or name.startswith(b"trusted."):
                return _NOT_ALLOWED
            self._report.warn(_NO_LABELS)
            return ""
        if name == _CAPABILITY and not is_owned:
            return "the file does not have the owner of its source"
        return None


# ------------------------------------------------------------------------------------------------------------- helpers


@contextlib.contextmanager
def _reopened(name: str | bytes, directory_fd: int) -> Iterator[tuple[str, os.stat_result]]:
    """Open what has a name, whatever it is; yield its path in /proc, and its status."""
    # By its /proc path: calls like fchmod(2) refuse an O_PATH descriptor, and a file that may not be read can't be
    # opened otherwise, though its owner may change its mode.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        yield f"/proc/self/fd/{fd}", os.fstat(fd)
    finally:
        os.close(fd)


def _sync(path: str) -> None:
    """Make a file durable, if it can be opened: fsync(2) refuses an O_PATH descriptor."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # its owner may change its mode, and yet not read it
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _try(this: This, failed: dict[bytes, str], name: bytes, change: Callable[[], None]) -> None:
    """Change an attribute; note why that failed."""
    try:
        try:
            change()
        except OSError as error:
            if error.errno != errno.EACCES:
                raise
            with _writable(this):
                change()
    except OSError as error:
        if error.errno == errno.ENODATA:  # another process removed it first
            return
        if error.errno in _BROKEN:
            raise
        failed[name] = error.strerror or str(error)


@contextlib.contextmanager
def _writable(this: This) -> Iterator[None]:
    """Let the owner write for the length of the block: `user.*` takes that, and the source may be read-only."""
    status = os.stat(this)
    mode = stat.S_IMODE(status.st_mode)
    if loses_setgid(status):
        yield
        return
    os.chmod(this, mode | stat.S_IWUSR)
    try:
        yield
    finally:
        os.chmod(this, mode)


def _told(failed: dict[bytes, str]) -> str:
    """Return a reason that names the attributes, or the first of them."""
    shown = [f"{ascii(os.fsdecode(name))[1:-1]} ({why})" for name, why in list(failed.items())[:_NAMES_SHOWN]]
    more = f" and {len(failed) - _NAMES_SHOWN} more" if len(failed) > _NAMES_SHOWN else ""
    return f"extended attributes are not set: {', '.join(shown)}{more}"


def loses_setgid(there: os.stat_result) -> bool:
    """Return whether chmod(2) would take the setgid bit of something away, whatever mode it is given."""
    return bool(there.st_mode & stat.S_ISGID) and not _may_keep_setgid(there.st_gid)


def _may_keep_setgid(gid: int) -> bool:
    """Whether chmod(2) leaves the setgid bit of something that has this group."""
    if gid == os.getegid() or gid in os.getgroups():
        return True
    with contextlib.suppress(OSError, ValueError), open("/proc/thread-self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_FSETID & 1)
    return os.geteuid() == 0


_CAP_FSETID: Final = 4
