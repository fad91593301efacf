"""The lock where the file system has no flock(2): a file that only one process can create (O_EXCL).

Nobody removes the file of a process that was killed. So it names its process, and its mtime is moved on every few
seconds: a lock is stale if its process is gone from this machine or, as a process of another machine can't be looked
for, if nobody has touched it for STALE_SECONDS.
"""

import contextlib
import errno
import os
import threading
from typing import Final

from receiver.disk.paths import LOCK_SUFFIX, OPEN_FLAGS

HEARTBEAT_SECONDS: Final = 10.0
STALE_SECONDS: Final = 60.0
_CONTENT_BYTES: Final = 200


class LockFile:
    """A lock that this process holds until `release`."""

    def __init__(self, name: str, directory_fd: int) -> None:
        """Lock what has this name in a directory.

        Raises BlockingIOError where another process has the lock, OSError.
        """
        self._name = name + LOCK_SUFFIX
        self._directory_fd = os.dup(directory_fd)
        self.fd = -1
        try:
            try:
                self.fd = self._create()
            except FileExistsError:
                self._remove_stale()
                self.fd = self._create()
            os.write(self.fd, _process().encode())
        except FileExistsError:
            self.release()
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK)) from None
        except BaseException:
            self.release()
            raise
        _HEARTBEAT.add(self)

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS
        return os.open(self._name, flags, 0o600, dir_fd=self._directory_fd)

    def _remove_stale(self) -> None:
        """Remove the lock of another process if it is stale. Raises BlockingIOError where it is not, OSError."""
        with contextlib.suppress(FileNotFoundError):  # released a moment ago
            fd = os.open(self._name, os.O_RDONLY | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=self._directory_fd)
            try:
                if not self._is_stale(fd):
                    raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
                self._take_away(os.fstat(fd))
            finally:
                os.close(fd)

    def _is_stale(self, fd: int) -> bool:
        is_gone = _is_gone(os.pread(fd, _CONTENT_BYTES, 0).decode(errors="replace"))
        return is_gone if is_gone is not None else self._now() - os.fstat(fd).st_mtime > STALE_SECONDS

    def _now(self) -> float:
        """Return the time by the clock of the file system: a server's may differ from ours."""
        name = self._name + os.urandom(8).hex()
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600, dir_fd=self._directory_fd)
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
            os.unlink(name, dir_fd=self._directory_fd)

    def _take_away(self, stale: os.stat_result) -> None:
        """Remove a stale lock. Raises BlockingIOError where another process did so before, and has the lock now."""
        aside = self._name + os.urandom(8).hex()
        os.rename(self._name, aside, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
        taken = os.stat(aside, dir_fd=self._directory_fd, follow_symlinks=False)
        if os.path.samestat(taken, stale):
            os.unlink(aside, dir_fd=self._directory_fd)
            return
        # If a third process has made a new one by now, the holder of this one finds out before it commits (`is_held`).
        os.rename(aside, self._name, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
        raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))

    @property
    def is_held(self) -> bool:
        """Whether this process still has the lock: another one takes it if we touch it too late. Raises OSError."""
        try:
            found = os.stat(self._name, dir_fd=self._directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self.fd))

    def release(self) -> None:
        """Remove the file, unless it is another process's by now. Idempotent."""
        _HEARTBEAT.remove(self)
        if self._directory_fd < 0:
            return
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                if self.is_held:
                    os.unlink(self._name, dir_fd=self._directory_fd)
            os.close(self.fd)
        os.close(self._directory_fd)
        self.fd = self._directory_fd = -1

    def touch(self) -> None:
        """Show that this process lives."""
        with contextlib.suppress(OSError):  # a server that does not answer: others can't look at the lock either
            os.utime(self.fd)


def _process() -> str:
    """Return what identifies this process, on this machine, in its container, for as long as the machine is up."""
    return f"{_machine()} {os.getpid()} {_started(os.getpid())}\n"


def _machine() -> str:
    """Return what identifies the machine and its container; process ids count only inside of both."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot_id:
        return f"{boot_id.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    return f"{os.urandom(16).hex()} 0"  # never equal to another one: then only the mtime counts


def _started(pid: int) -> str | None:
    """Return when a process began, in the unit of the kernel; None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_gone(content: str) -> bool | None:
    """Whether the process that wrote a lock is gone; None where that can't be told from here."""
    parts = content.split()
    if len(parts) != 4 or " ".join(parts[:2]) != _machine() or not parts[2].isdecimal():
        return None
    return _started(int(parts[2])) != parts[3]


class _Heartbeat:
    """Touches the locks of this process, in a thread that lives as long as there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # protects what follows
        self._locks: set[LockFile] = set()
        self._thread: threading.Thread | None = None

    def add(self, lock: LockFile) -> None:
        with self._changed:
            self._locks.add(lock)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="lock-heartbeat", daemon=True)
                with contextlib.suppress(RuntimeError):  # no thread can be started: the next lock tries again
                    thread.start()
                    self._thread = thread

    def remove(self, lock: LockFile) -> None:
        with self._changed:
            self._locks.discard(lock)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._locks, HEARTBEAT_SECONDS)
                if not self._locks:
                    self._thread = None
                    return
                locks = list(self._locks)
            for lock in locks:
                lock.touch()


_HEARTBEAT: Final = _Heartbeat()
