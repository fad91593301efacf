"""Paths at the far side: the user writes them behind HOST, relative to his home there, as scp has it."""

import os

from filestreamer.ssh import lines
from filestreamer.wire.errors import FarSideFailed


def locate(text: str) -> str:
    """Return the path that a user means who writes it behind HOST: it may be relative to home. Raises FarSideFailed."""
    try:
        path = lines.path_from_json(text)
    except ValueError:
        path = "\0"
    if "\0" in path:
        raise FarSideFailed("this is no path", exit_code=2)
    expanded = os.path.expanduser(path) if path.startswith("~") else os.path.join(os.path.expanduser("~"), path)
    if expanded.startswith("~"):
        raise FarSideFailed(
            f"{path.partition('/')[0]}: there is no such user; ./{path} is a directory of that name", exit_code=4
        )
    return expanded
