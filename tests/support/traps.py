"""A directory full of modules that say so when they are executed: what a sender could send to be run by a receiver."""

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

_LOADS_ALL = """
import sys
import click, pathspec, rich.live, structlog
import receiver.__main__, receiver.health, receiver.server.server, receiver.settings
import sender.__main__, sender.settings, sender.coordinator
import filestreamer.telemetry.metrics, filestreamer.telemetry.page
import filestreamer.terminal.screen, filestreamer.wire.sockets.tls_channel, filestreamer.wire.sockets.certificate
print(*sys.modules)
"""

MISSED = {"better_exceptions", "colorama", "sitecustomize", "usercustomize", "zstandard"}
"""Looked for by what is loaded, and often not there."""


def of_python(directory: Path) -> set[str]:
    """Return what `python -m NAME` itself imports before anything of NAME: out of reach, but for -P."""
    (directory / "begun.py").write_text("import sys\nprint(*sys.modules)\n")
    command = [sys.executable, "-P", "-m", "begun"]
    environment = {"PYTHONPATH": str(directory)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment)
    return {name.partition(".")[0] for name in done.stdout.split()} | {"sender", "receiver"}


def names() -> set[str]:
    """Return the top-level name of everything that a service may import, and of all that Python brings."""
    command = [sys.executable, "-P", "-c", _LOADS_ALL]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()
    assert {"socket", "ssl", "prometheus_client", "rich", "structlog", "google", "xxhash", "filestreamer"} <= set(
        loaded
    )
    return (MISSED | {name.partition(".")[0] for name in loaded} | set(sys.stdlib_module_names)) - {
        "__main__",
        "builtins",
    }


def fill(directory: Path, marks: Path, *, without: Collection[str] = ()) -> None:
    """Put a module and a package of each name there; one that is executed leaves a file of its name in `marks`."""
    source = f"import os\nos.close(os.open({str(marks)!r} + '/' + __name__, os.O_CREAT | os.O_WRONLY))\n"
    for name in names() - set(without):
        (directory / f"{name}.py").write_text(source)
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text(source)
        (directory / name / "__main__.py").write_text(source)


def sprung(marks: Path) -> list[str]:
    """Return what was executed."""
    return sorted(path.name for path in marks.iterdir())
