"""The extended attributes of entries: read for --xattrs; without it, looked for, so that the user knows of them.

Two kinds are left where they are: what a file system makes up itself (`system.*` but for ACLs, `btrfs.*`, ...), and
what does not fit into a manifest.
"""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.messages import Xattr
from filestreamer.wire.xattr_parts import FILE_SYSTEM_NAMES

_KEPT: Final = ("user.", "system.posix_acl_access", "system.posix_acl_default", "trusted.", "security.")
_TOLD: Final = ("user.", "system.posix_acl_access", "system.posix_acl_default", "trusted.", "security.capability")
"""What is told of without --xattrs. A security module may label every file: nobody misses that elsewhere."""
_NONE: Final = (errno.ENOTSUP, errno.ENOSYS)
LOOKED_AT: Final = 1000
"""So many files are looked at without --xattrs; then one of STEP, and each directory. Each look costs a system call."""
STEP: Final = 64
LEFT_OUT: Final = "extended attributes (ACLs, capabilities, user.*) of the source are left out: --xattrs keeps them"
_NAMES_SHOWN: Final = 3

This = int | bytes
"""A descriptor, or a path; its last component is not followed unless `follows`."""


class XattrReader:
    """Reads the extended attributes of the entries of one transfer. For one thread."""

    def __init__(self, *, is_kept: bool, warn: Callable[[str], None]) -> None:
        """`is_kept` is the user's --xattrs; `warn` is called if there are some without it."""
        self._is_kept = is_kept
        self._warn = warn
        self._is_looking = not is_kept
        self._files = 0

    def read(self, this: This, *, follows: bool = False) -> tuple[tuple[Xattr, ...], str]:
        """Return the attributes that are kept of an entry, and why others are not: "" if there are none."""
        if self._is_kept:
            return _read(this, follows=follows)
        if self._is_looking:
            names, _ = _names(this, follows=follows)
            if any(name.startswith(_TOLD) for name in names):
                self._is_looking = False
                self._warn(LEFT_OUT)
        return (), ""

    def is_due(self) -> bool:
        """Count another entry that is no directory; return whether `read` is to look at it."""
        self._files += 1
        return self._is_kept or (self._is_looking and (self._files <= LOOKED_AT or self._files % STEP == 0))


def _names(this: This, *, follows: bool) -> tuple[Sequence[str], str]:
    """Return the names of all attributes, and why they can't be listed."""
    try:
        return (os.listxattr(this) if isinstance(this, int) else os.listxattr(this, follow_symlinks=follows)), ""
    except OSError as error:
        return (), "" if error.errno in _NONE else error.strerror or str(error)


def _read(this: This, *, follows: bool) -> tuple[tuple[Xattr, ...], str]:
    names, problem = _names(this, follows=follows)
    if not names:
        return (), problem
    found: list[Xattr] = []
    missing: dict[str, str] = {}
    left_bytes = limits.XATTRS_BYTES
    # ACLs, capabilities and labels are small, and matter most.
    for name in sorted(names, key=lambda name: (name.startswith("user."), name)):
        if not name.startswith(_KEPT) or os.fsencode(name) in FILE_SYSTEM_NAMES:
            continue
        try:
            value = (
                os.getxattr(this, name) if isinstance(this, int) else os.getxattr(this, name, follow_symlinks=follows)
            )
        except OSError as error:
            if error.errno != errno.ENODATA:  # it was removed meanwhile
                missing[name] = error.strerror or str(error)
            continue
        encoded = os.fsencode(name)
        size = len(encoded) + len(value)
        if size > left_bytes or len(found) == limits.XATTRS_PER_ENTRY:
            missing[name] = f"an entry has at most {limits.XATTRS_BYTES} bytes and {limits.XATTRS_PER_ENTRY} attributes"
            continue
        left_bytes -= size
        found.append(Xattr(encoded, value))
    return tuple(found), _told(missing)


def _told(missing: dict[str, str]) -> str:
    if not missing:
        return ""
    shown = [f"{ascii(name)[1:-1]} ({why})" for name, why in list(missing.items())[:_NAMES_SHOWN]]
    more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
    return f"extended attributes are left out: {', '.join(shown)}{more}"
