"""Held segments that come faster than they are compared are not kept without bound."""

import threading
from typing import Any

import pytest

from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.sockets.control_link import ControlLink
from sender.dispatch.verify import BACKLOG_MAX, Verifier
from sender.mailbox import Event, Mailbox
from sender.network.control import ControlReader, Received


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing compared."""
    monkeypatch.setattr("sender.dispatch.verify.start_thread", lambda *_: None)


def test_the_control_connection_is_not_read_while_much_waits_to_be_compared() -> None:
    held: Any = None
    verifier = Verifier(held, held, held, held)
    reads = 3 * BACKLOG_MAX

    class Channel:
        heard_at = 0.0
        patience: Any = None

        def read_body(self) -> bytes:
            nonlocal reads
            reads -= 1
            if not reads:
                raise ConnectionLost("the end")
            return b"held"

    class Dialer:
        def close_channel(self, channel: object) -> None:
            del channel

    class Inbox(Mailbox):
        def post(self, event: Event) -> None:
            assert isinstance(event, Received)
            verifier.compare(held)
            link.acted()
            if verifier.is_behind():
                reader.begin_stop(None)  # it would wait as long as nothing is compared

    dialer: Any = Dialer()
    link = ControlLink("sender", 64, threading.Event())
    reader = ControlReader(dialer, link, Inbox(), verifier.is_behind)
    channel: Any = Channel()
    channel.patience = link.check
    thread = threading.Thread(target=_until_lost, args=(reader, channel), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert BACKLOG_MAX < 3 * BACKLOG_MAX - reads < BACKLOG_MAX + 4


def _until_lost(reader: ControlReader, channel: Any) -> None:
    with pytest.raises(ConnectionLost):
        reader._read(channel)
