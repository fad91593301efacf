"""The control connection of a transfer, for the coordinator at either end (proto/README.md, "Control conversation").

One `ControlLink` serves a transfer from its beginning to its end; the channel under it is replaced whenever control is
opened anew. The coordinator's thread alone writes (`say`). A reader thread alone reads (`read`), and never writes: so
neither end can block in a write while the other end blocks in one, too.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import (
    Aborted,
    Code,
    ConnectionLost,
    FilestreamerError,
    Interrupted,
    LocalProtocolError,
)
from filestreamer.wire.messages import Abort, Message, Role
from filestreamer.wire.session import Session, Side, State
from filestreamer.wire.sockets.transport import TICK_SECONDS, Channel

BEHIND_SECONDS: Final = 0.02
"""How long the reader waits before it checks again whether this end is still behind."""


def _never() -> bool:
    return False


class ControlLink:
    """The channel that is open now, if any, and the session of the conversation on it."""

    def __init__(self, side: Side, frames: int, over: threading.Event, dialled: Side = "receiver") -> None:
        """Have no channel yet. At most `frames` frames are read and not acted on; `over` is set when all is to stop.

        `dialled` is the end that was dialled.
        """
        self.channel: Channel | None = None
        self.is_hurried = False
        """Whether this process was asked to end: then it does not wait for a peer that reads nothing."""
        self._side: Side = side
        self._dialled: Side = dialled
        self.over = over
        self._room = threading.Semaphore(frames)
        self._session = Session(side, Role.CONTROL, dialled)
        self._said_early: deque[Message] = deque()
        """What was sent on the channel before it was attached, and is still to be said."""
        self._said_at = 0.0
        self._writing = threading.Lock()  # held while the coordinator writes, and while the reader closes the channel
        self._writing_since: float | None = None
        """When the coordinator began the write that has not returned yet (monotonic)."""

    @property
    def state(self) -> State:
        """The state of the conversation (`filestreamer.wire.session`)."""
        return self._session.state

    @property
    def is_writing(self) -> bool:
        """Whether a message is being written: the peer, or the path to it, takes it slowly."""
        return self._writing_since is not None

    def attach(self, channel: Channel, said_early: Iterable[Message] = ()) -> None:
        """Go on with a new channel, on which a new conversation begins.

        `said_early` are the first messages that are going to be said on it, if they were sent already.
        """
        self.channel = channel
        self._session = Session(self._side, Role.CONTROL, self._dialled)
        self._said_early = deque(said_early)

    def received(self, message: Message) -> None:
        """Step the session by a message of the peer. Raises RemoteProtocolError where it is not legal now."""
        self._session.received(message)

    # --- the coordinator's thread

    def say(self, message: Message) -> bool:
        """Send a message; return whether the kernel took it.

        Where it did not, the channel is shut: its reader notices, and the sender opens control anew.
        """
        if self.channel is None:
            return False
        self._session.sending(message)
        if self._said_early:
            if self._said_early.popleft() != message:
                raise LocalProtocolError(f"{type(message).__name__} differs from what was sent before Welcome")
            return True
        self._writing_since = time.monotonic()
        try:
            with self._writing:
                self.channel.send_message(message)
        except ConnectionLost:
            self.channel.shut()
            return False
        except FilestreamerError:  # the transfer ends in the middle of this frame: nothing can follow it
            self.channel.shut()
            raise
        finally:
            self._writing_since = None
        self._said_at = time.monotonic()
        return True

    def is_heartbeat_due(self, now: float) -> bool:
        """Return whether this end has sent nothing for so long that the peer needs a heartbeat."""
        return self.channel is not None and now - self._said_at > limits.HEARTBEAT_SECONDS

    def say_goodbye(self, error: FilestreamerError, *last_words: Message) -> None:
        """Send Abort with the reason, then end the stream. Never raises, and never waits for an answer.

        No Abort is sent if the peer has ended the transfer itself, or knows how it ended.
        """
        if self.channel is None or isinstance(error, Aborted | ConnectionLost) or self.state == "aborted":
            return
        # Complete is the last message of a receiver. A sender that reads Complete too early refuses it, like any
        # message that the protocol does not allow.
        if self.state == "complete" and self._side == "receiver":
            return
        code = getattr(error, "code", Code.SHUTTING_DOWN if isinstance(error, Interrupted) else Code.INTERNAL)
        with contextlib.suppress(FilestreamerError):
            for message in (*last_words, Abort(code, str(error))):
                if not self.say(message):
                    return
        self.channel.finish_writing()

    def acted(self) -> None:
        """Make room for another frame, now that one was acted on."""
        self._room.release()

    # --- the reader's thread

    def read(self, channel: Channel, take: Callable[[bytes], None], is_behind: Callable[[], bool] = _never) -> None:
        """Hand the body of each frame to `take` until the channel ends. Raises the error that ended it.

        While this end `is_behind`, or has not acted on earlier frames, further bytes stay in the socket.
        """
        while True:
            body = channel.read_body()
            while is_behind() or not self._room.acquire(timeout=TICK_SECONDS):
                # Beside the channel's patience: that may be the deadline of a goodbye, which waits for the peer alone.
                self.check()
                channel.patience()
                # Nothing was read while this end was behind: that time does not count as silence of the peer.
                channel.heard_at = time.monotonic()
                self.over.wait(BEHIND_SECONDS)
            take(body)
            del body  # otherwise its memory stays in use until the next frame comes

    def let_go(self, channel: Channel, close: Callable[[Channel], None]) -> None:
        """Close a channel that nothing more is read from, once nothing is written to it, which is made to end.

        A socket that is closed just before another thread writes to it may give its descriptor to another connection,
        and that would get the bytes.
        """
        channel.shut()
        with self._writing:
            close(channel)

    def check(self) -> None:
        """Raise ConnectionLost where the transfer is over, or the peer takes nothing of what is being written.

        For the channel's `patience`: a peer that never reads would block the coordinator's write for ever.
        """
        if self.over.is_set():
            raise ConnectionLost("the transfer is over")
        since = self._writing_since
        if since is not None and (self.is_hurried or time.monotonic() - since > limits.DEAD_SECONDS):
            peer = "receiver" if self._side == "sender" else "sender"
            raise ConnectionLost(f"the {peer} does not read the control connection")
