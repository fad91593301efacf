"""The coordinator where the order of its steps matters to threads that go on meanwhile."""

import os
import threading
from typing import Any

import pytest

from sender.coordinator import Transfer
from sender.settings import parse
from sender.source.stream import Stream
from tests.support.sending import Silent


def test_a_late_acknowledgement_of_a_restarted_receiver_does_not_free_chunks_of_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They have to be sent again: what is read next must not overwrite them."""
    reading, writing = os.pipe()
    with open(reading) as stdin, open(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr("sys.stdin", stdin)
        settings, _ = parse(["-", "--to", "127.0.0.1:1", "--chunk-size", "4", "--window", "8"], {})
        transfer = Transfer(settings, Silent())
        stream, queue = transfer._manifest.stream, transfer._queue
        assert stream is not None
        are_read = threading.Semaphore(0)

        def take_chunk() -> None:
            transfer._take_stream_chunk()
            are_read.release()

        stream.start(take_chunk, transfer.mailbox)
        pipe.write(bytes(8))
        for _ in range(2):
            assert are_read.acquire(timeout=10)
        queue.need_stream()
        epoch, chunk_id = queue.epoch, queue.next(0, queue.epoch)
        assert chunk_id == 0
        start_over = Stream.start_over

        def start_over_late(self: Stream) -> Any:
            started_over = start_over(self)
            queue.mark_done((0,), epoch, 0)
            return started_over

        monkeypatch.setattr(Stream, "start_over", start_over_late)
        transfer._start_over()
        assert stream._lowest == 0
        stream.stop()
