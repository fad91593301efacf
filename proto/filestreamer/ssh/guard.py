"""A small process that outlives this one by a moment, and tidies up where this one was killed.

`ssh -W` does not always end by itself then: where bytes were on the way to it, its sshd waits for a window that it
never opens, and both go on answering each other's keepalives. And the directory of ssh's socket would stay.
"""

import os
import subprocess
from typing import Final

_PROGRAM: Final = """
trap "" INT HUP TERM
read -r _
[ -z "$1" ] || rm -rf -- "$1"
kill -KILL 0
"""
"""It reads from a pipe that only this service can write to, so that its end is the end of this service."""


class Guard:
    """Leads a process group, and kills all of it once this process has ended, however that was."""

    def __init__(self, directory: str | None) -> None:
        """Begin. The directory is removed then, too. Raises OSError."""
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _PROGRAM, "sh", directory or ""],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        except BaseException:
            os.close(self._writer)
            raise
        finally:
            os.close(reader)

    @property
    def group(self) -> int:
        """The process group, for others of this session. It exists until `end`, which is the first to wait for it."""
        return self._process.pid

    def end(self) -> None:
        """Kill what is left of the group, and remove the directory."""
        os.close(self._writer)
        self._process.wait()
