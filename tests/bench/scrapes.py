"""What scrapes cost: a transfer over 64 connections, with both services scraped and without: `make scrapes`.

Rounds are interleaved; printed are the median ratio of the rates, and how long scrapes took during the transfers.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from tests.bench.measure import check
from tests.support.services import Pair, pair

CONNECTIONS = 64
INTERVAL_SECONDS = 0.25
METRICS = ("--metrics", "127.0.0.1:0")


def move(files: Pair, source: Path, scrapes: list[float] | None) -> float:
    """Move the file, scraping both services if `scrapes` takes their seconds; return the rate in bytes per second."""
    receiver = files.receiver("--once", *METRICS)
    sender = files.sender(source, files.address(receiver), "--connections", CONNECTIONS, *METRICS)
    over = threading.Event()
    threads = []
    if scrapes is not None:
        for service in (sender, receiver):
            url = f"http://{service.wait_for('metrics')['address']}/metrics"
            threads.append(threading.Thread(target=scrape, args=(url, over, scrapes)))
    for thread in threads:
        thread.start()
    assert sender.wait(600) == 0, sender.stderr
    over.set()
    for thread in threads:
        thread.join()
    assert receiver.wait(600) == 0, receiver.stderr
    return float(sender.result["bytes_per_second"])


def scrape(url: str, over: threading.Event, seconds: list[float]) -> None:
    """Scrape until the transfer is over; the first scrape, which imports what it needs, is not counted."""
    is_first = True
    while not over.is_set():
        begun = time.perf_counter()
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                body = response.read()
        except OSError:
            return  # it has ended
        if body.count(b"connection_up{") == CONNECTIONS and not is_first:
            seconds.append(time.perf_counter() - begun)
        is_first = False
        over.wait(INTERVAL_SECONDS)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=4 << 30)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", default="/dev/shm", help="where the files lie; a RAM disk by default")
    settings = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=settings.directory, prefix="filestreamer-scrapes-"))
    ratios: list[float] = []
    seconds: list[float] = []
    try:
        with pair(root) as files:
            source = files.source / "f"
            with source.open("wb") as file:
                block = os.urandom(1 << 24)
                for _ in range(0, settings.bytes, len(block)):
                    file.write(block)
            for _ in range(settings.rounds):
                rates = []
                for collected in (None, seconds):
                    rates.append(move(files, source, collected))
                    check(source, files.destination / "f")
                ratios.append(rates[1] / rates[0])
    finally:
        shutil.rmtree(root)
    ratios.sort()
    milliseconds = sorted(1000 * each for each in seconds)
    sys.stdout.write(
        f"scraped four times a second / not scraped: {statistics.median(ratios):.3f}"
        f" ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} rounds)\n"
        f"a scrape at {CONNECTIONS} connections: {statistics.median(milliseconds):.0f} ms"
        f" ({milliseconds[0]:.0f} to {milliseconds[-1]:.0f}, {len(milliseconds)} scrapes)\n"
    )


if __name__ == "__main__":
    main()
