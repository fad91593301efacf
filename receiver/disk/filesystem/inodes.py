"""Names a disk that is full because it has no inodes left: then `df` shows free space, and only `df -i` tells."""

import errno
import os


def explain(error: OSError, fd: int) -> OSError:
    """Return the error of making a file or directory, named where its cause is that no inodes are left.

    `fd` is any descriptor on the same file system.
    """
    if error.errno != errno.ENOSPC:
        return error
    try:
        space = os.fstatvfs(fd)
    except OSError:
        return error
    # A file system without a fixed number of inodes says that it has none at all.
    if space.f_files and not space.f_favail:
        return OSError(errno.ENOSPC, "no inodes left on the file system (df -i): remove files that are not needed")
    return error
