"""Paths below the destination: which ones a sender may write, how staged files are named (proto/README.md, "Paths").

Pure: nothing here looks at the disk.
"""

import os
import re
from collections.abc import Sequence
from typing import Final

from filestreamer.wire import limits, staging_name
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.staging_name import leads_to_staging

STAGING: Final = staging_name.STAGING.decode()
"""The staging directory, at the top of the destination, and of each other place below it (`place`)."""
DATA_SUFFIX: Final = ".data"
"""KEY.data has the bytes of an incomplete file, at their final offsets."""
LEDGER_SUFFIX: Final = ".ledger"
"""KEY.ledger lists the segments that are in KEY.data; its lock keeps other processes away from both files."""
SHARED_SUFFIX: Final = ".shared"
"""KEY-VERSION.shared has the bytes of an incomplete file that several shards of a tree write (`shared_names`)."""
JOB_SUFFIX: Final = ".job"
"""KEY.job says which shards of a job are finished; KEY is that of the job's name (`staging.job_record`)."""
RECEIPT_SUFFIX: Final = ".receipt"
"""KEY.receipt has the result of what a run has committed; KEY is that of the run (`staging.receipt`)."""
PENDING_SUFFIX: Final = ".pending"
"""KEY-INDEX.pending lists the shared files that waited for other shards when this one was finished."""
TREE_SUFFIX: Final = ".tree"
"""KEY.tree/ has complete small files of a tree until they are renamed; a lock in it keeps others away."""
NOTE_SUFFIX: Final = ".place"
"""KEY.place, at the top of the destination, has the path of another place, below which something is staged, too."""
SPOOL_PREFIX: Final = "spool-"
TIME_PREFIX: Final = "time-"
"""What begins the names of files that have one for a moment, where the file system has none without (O_TMPFILE)."""
LOCK_SUFFIX: Final = ".lock"
"""NAME.lock keeps other processes away from NAME, where the file system has no flock."""
OPEN_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
"""Flags of every open below the destination: a symlink that another user put there must not lead us out."""
_MOMENTARY_KEY_CHARACTERS: Final = 16
_UNSAFE: Final = re.compile(rb"(?:^|/)(?:\.{0,2}|[^/]{%d,})(?:/|\Z)|\0" % (limits.NAME_BYTES + 1))
"""Matches in every path that `check_path` refuses by its form: one search for what is nearly always fine."""


def check_path(path: bytes) -> None:
    """Check the path of a manifest entry, relative to the destination. Raises TransferFailed(PATH).

    Refused are NUL, '.', '..', empty components, absolute paths, components that are longer than a file system takes,
    and `.filestreamer` as a component, in every form that a file system may take for it.
    """
    is_staging = leads_to_staging(path)
    if not (is_staging or _UNSAFE.search(path)):
        return
    parts = path.split(b"/")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        reason = "absolute, '.', '..', empty component or NUL"
    elif is_staging:
        reason = f"a component may be taken for {STAGING}"
    else:
        reason = f"a component is longer than {limits.NAME_BYTES} bytes"
    raise TransferFailed(Code.PATH, f"unsafe path {_quoted(path)} ({reason}): send it under another name")


def check_paths(paths: Sequence[bytes]) -> None:
    """Check the paths of many entries as `check_path` checks one. Raises TransferFailed(PATH).

    Nearly always all are fine: one search tells, as each of their components is one of the whole.
    """
    whole = b"/".join(paths)
    if leads_to_staging(whole) or _UNSAFE.search(whole):
        for path in paths:
            check_path(path)


def check_name(path: bytes) -> bytes:
    """Return a path that is one plain name, as a single file has it. Raises TransferFailed: as `check_path`, POLICY."""
    check_path(path)
    if b"/" in path:
        raise TransferFailed(Code.POLICY, f"{_quoted(path)} has directories, but a single file needs a plain name")
    return path


def _quoted(path: bytes) -> str:
    # A peer chose these bytes: escaped and cut, they can neither control a terminal nor fill a log.
    return ascii(os.fsdecode(path[:80]))


def staging_key(path: bytes) -> str:
    """Return KEY, under which the file with this final path is staged: any later run finds it by its path."""
    return segment_digest(path).hex()


def momentary_name(key: str) -> str:
    """Return the name that something has in its final directory for a moment, where it can't be made in staging.

    It goes by KEY, so that the next run removes there what a receiver has left that was killed just then.
    """
    return f"{STAGING}-{key[:_MOMENTARY_KEY_CHARACTERS]}"
