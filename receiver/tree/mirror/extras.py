"""Finds, in a directory that was listed whole, the names that the manifest does not list, and has them removed."""

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from filestreamer.process.mount import device_and_mount, is_mounted_below
from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.messages import Deletion, Finish, SkipKind
from filestreamer.wire.patterns import matcher
from filestreamer.wire.staging_name import leads_to_staging
from receiver.disk.destination import Destination, shown_path
from receiver.disk.obstacles import BROKEN
from receiver.disk.paths import check_path
from receiver.tree.mirror.mirror import ListedDirectory
from receiver.tree.mirror.removal import Removal, Remove, opened

_NOT_AT_A_ROOT: Final = b"lost+found"
_FATAL: Final = BROKEN | {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that say nothing of one entry: the transfer ends."""
_HARMLESS: Final = (SkipKind.SPECIAL, SkipKind.ATTRIBUTE)
"""Kinds of entries that were left out although the manifest and the destination agree on their names."""

Try = Callable[[bytes], bool]


class Extras:
    """Removes, or tells, what is in the directories of a Deletion and not in the manifest."""

    def __init__(
        self,
        deletion: Deletion,
        destination: Destination,
        *,
        remove: Remove,
        warn: Callable[[str], None],
        try_claim: Try,
        release: Callable[[bytes], None],
        is_dry: bool = False,
    ) -> None:
        """`try_claim` holds a name at the top of the destination, unless another transfer does, until `release`.

        `is_dry`: `remove` only tells.

        Raises TransferFailed: PATH, or POLICY where a pattern makes no sense.
        """
        for root in deletion.roots:
            if root:
                check_path(root)
            if b"/" in root:
                raise TransferFailed(Code.PATH, "a directory of Offer.delete is not at the top of the destination")
        try:
            self._excluded = matcher(deletion.excludes)
        except ValueError as error:
            raise TransferFailed(Code.POLICY, f"--exclude, which --delete keeps: {error}") from None
        self._destination = destination
        self._remove = remove
        self._warn = warn
        self._try_claim = try_claim
        self._release = release
        self._is_dry = is_dry
        _, self._mount = device_and_mount(destination.fd)
        self.failed = 0
        """How many entries could not be removed."""

    def look(self, directory: ListedDirectory) -> Iterator[None]:
        """Remove what is in a directory and not in the manifest; yield after each name. Raises TransferFailed.

        There may be any number of them, and who tells each has to pass that on meanwhile.
        """
        try:
            with opened(self._destination.fd, directory.path.split(b"/") if directory.path else []) as fd:
                yield from self._look(directory, fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            # In a dry run, a directory is declined whose name something else has, or that lies on a broken mount: that
            # is told already.
            is_declined = error.errno in (errno.ENOTDIR, errno.ELOOP) or (
                error.errno in BROKEN and is_mounted_below(self._destination.fd, directory.path)
            )
            if not (self._is_dry and is_declined):
                self._failed(directory.path, error)

    def _look(self, directory: ListedDirectory, fd: int) -> Iterator[None]:
        moved = extras = 0
        with os.scandir(fd) as found:
            for each in found:
                name = os.fsencode(each.name)
                moved += name in directory.moved
                extras += not directory.is_listed(name)
        if not extras or device_and_mount(fd)[1] != self._mount:
            return
        if moved < directory.moved_count:
            # A listed file is there under another spelling: it must not be taken for one that is not listed.
            self._warn(
                f"nothing was removed from {shown_path(self._destination, directory.path)}: names that the sender"
                " listed are not there as they are written, as the file system takes different names for one"
            )
            return
        removal = Removal(
            fd,
            directory.path,
            is_kept=lambda path, is_directory: self._is_kept(directory, path, is_directory),
            remove=self._remove,
            failed=self._failed,
            is_dry=self._is_dry,
        )
        with os.scandir(fd) as found:
            for each in found:
                name = os.fsencode(each.name)
                if not directory.is_listed(name):
                    yield from self._remove_extra(removal, directory, name)
                    yield

    def _remove_extra(self, removal: Removal, directory: ListedDirectory, name: bytes) -> Iterator[None]:
        if directory.path:  # the name at the top is held by this transfer
            yield from removal.remove(name)
        elif self._try_claim(name):
            try:
                yield from removal.remove(name)
            finally:
                self._release(name)

    def _is_kept(self, directory: ListedDirectory, path: bytes, is_directory: bool) -> bool:
        assert directory.root is not None  # `Mirror` hands on no other directory
        relative = path[len(directory.root) + 1 :] if directory.root else path
        name = path.rpartition(b"/")[2]
        if leads_to_staging(name) or relative == _NOT_AT_A_ROOT:
            return True
        return self._excluded(relative, is_directory)

    def _failed(self, path: bytes, error: OSError) -> None:
        what = f"can't remove {shown_path(self._destination, path)}"
        if error.errno in _FATAL:
            raise from_os_error(error, Code.DESTINATION, what) from None
        self.failed += 1
        self._warn(f"{what}: {error.strerror}")


def check_permitted(destination: Destination) -> None:
    """Raise TransferFailed(POLICY) where the user of this receiver does not permit a Deletion."""
    if not destination.allow_delete:
        raise TransferFailed(
            Code.POLICY, "this receiver removes nothing: start it with --allow-delete, or leave out --delete"
        )


def is_short(finish: Finish) -> bool:
    """Return whether the sender has left out what may be at the destination: then nothing is to be removed."""
    return any(each.kind not in _HARMLESS for each in finish.left_out_counts)
