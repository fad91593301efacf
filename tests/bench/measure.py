"""How fast the pair moves a file over loopback, beside `cp` of the same file: `make measure`.

Rounds are interleaved, every copy is compared, and medians are printed: shared machines are noisy.
"""

import argparse
import filecmp
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.services import Pair, pair


def move(files: Pair, source: Path) -> float:
    """Move the file by the real services; return seconds, from the sender's result."""
    receiver = files.receiver("--once")
    sender = files.sender(source, files.address(receiver))
    assert sender.wait(600) == 0, sender.stderr
    assert receiver.wait(600) == 0, receiver.stderr
    return float(sender.result["seconds"])


def copy(source: Path, target: Path) -> float:
    """Copy the file by cp; return seconds."""
    begun = time.perf_counter()
    subprocess.run(["cp", source, target], check=True)
    return time.perf_counter() - begun


def check(source: Path, target: Path) -> None:
    """Compare a copy with its source, and remove it."""
    assert filecmp.cmp(source, target, shallow=False), f"{target} differs"
    target.unlink()


def main() -> None:
    """Measure, and print a line for each of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", default="/dev/shm", help="where the files lie; a RAM disk by default")
    settings = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=settings.directory, prefix="filestreamer-measure-"))
    moved, copied = [], []
    try:
        with pair(root) as files:
            source = files.source / "f"
            with source.open("wb") as file:
                for _ in range(0, settings.bytes, 1 << 20):
                    file.write(os.urandom(1 << 20))
            for _ in range(settings.rounds):
                moved.append(move(files, source))
                check(source, files.destination / "f")
                copied.append(copy(source, root / "copy"))
                check(source, root / "copy")
    finally:
        shutil.rmtree(root)
    for name, seconds in (("filestreamer", moved), ("cp", copied)):
        rates = sorted(settings.bytes / s / 1e9 for s in seconds)
        median = statistics.median(rates)
        sys.stdout.write(f"{name:13}{median:.2f} GB/s ({rates[0]:.2f} to {rates[-1]:.2f}, {len(rates)} rounds)\n")


if __name__ == "__main__":
    main()
