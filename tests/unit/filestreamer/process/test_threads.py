"""What threads waited for a processor, as the kernel counts it."""

import hashlib
import os
import threading
import time

from filestreamer.process.threads import waited_seconds

LONG_SECONDS = 30.0


def test_threads_that_share_a_processor_wait_for_it() -> None:
    processor = min(os.sched_getaffinity(0))
    is_over = threading.Event()
    block = bytes(1 << 20)

    def work() -> None:
        os.sched_setaffinity(0, {processor})  # of this thread alone
        while not is_over.is_set():
            hashlib.sha256(block)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LONG_SECONDS
    while waited_seconds(threads) < 0.1 and time.monotonic() < deadline:
        pass
    waited = waited_seconds(threads)
    is_over.set()
    for thread in threads:
        thread.join()

    assert 0.1 <= waited < 2 * LONG_SECONDS


def test_threads_that_are_not_running_have_not_waited() -> None:
    over = threading.Thread(target=str)
    over.start()
    over.join()
    deadline = time.monotonic() + LONG_SECONDS
    while waited_seconds([over]) and time.monotonic() < deadline:
        pass  # its function has ended; the kernel forgets it a moment later
    assert waited_seconds([over, threading.Thread()]) == 0
