"""How many descriptors this process may have."""

import contextlib


def allow_all() -> None:
    """Allow this process as many descriptors as possible: each connection and each open file needs one."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
