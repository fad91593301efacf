"""A small record in staging: one JSON object in a file of its own, which is replaced durably."""

import json
import os
import stat
from collections.abc import Mapping
from typing import Any, Final

from receiver.disk.filesystem.sync import sync_directory
from receiver.disk.paths import OPEN_FLAGS
from receiver.disk.place import is_ours

NEW_SUFFIX: Final = "-new"
"""What the name of a record has while it is written. A crash may leave it."""


def read_record(staging_fd: int, name: str, most_bytes: int) -> dict[str, Any]:
    """Return a record; an empty one where it is missing, damaged, too large, or of another user. Raises OSError."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=staging_fd)
    except FileNotFoundError:
        return {}
    with open(fd, "rb") as file:
        status = os.fstat(file.fileno())
        is_readable = stat.S_ISREG(status.st_mode) and is_ours(status, staging_fd)
        content = file.read(most_bytes) if is_readable else b""
    try:
        fields = json.loads(content)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def write_record(staging_fd: int, name: str, fields: Mapping[str, Any]) -> None:
    """Replace a record, durably. Raises OSError."""
    new = name + NEW_SUFFIX
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | OPEN_FLAGS
    with open(os.open(new, flags, 0o600, dir_fd=staging_fd), "wb") as file:
        file.write(json.dumps(fields).encode())
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, name, src_dir_fd=staging_fd, dst_dir_fd=staging_fd)
    sync_directory(staging_fd)
