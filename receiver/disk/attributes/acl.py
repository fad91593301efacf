"""POSIX ACLs, as the kernel shows them in extended attributes (pure)."""

import struct
from typing import Final

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
"""What new entries of a directory get."""
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
"""Tag, permissions, uid or gid."""
_GROUP_OBJ: Final = 0x04
_MASK: Final = 0x10


def narrowed(mode: int, acl: bytes) -> int:
    """Return a mode for a file that can't have its ACL: its owning group gets no more than the ACL gives it."""
    group = mask = 0
    has_mask = False
    for at in range(_HEADER.size, len(acl) - _ENTRY.size + 1, _ENTRY.size):
        tag, permissions, _ = _ENTRY.unpack_from(acl, at)
        if tag == _GROUP_OBJ:
            group = permissions
        elif tag == _MASK:
            mask, has_mask = permissions, True
    allowed = (group & mask if has_mask else group) & 0o7
    return mode & ~0o070 | mode & allowed << 3
