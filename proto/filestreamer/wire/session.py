"""Which message is legal when, after Welcome, as one table (proto/README.md, "Sessions").

    control   offer ──Offer──▶ manifest ──last ManifestPart──▶ moving ──Finish──▶ finishing ──Complete──▶ complete
                                                                 ▲                    │
                                                                 └──────Needed────────┘
    data      moving

Abort is legal in every state, and is the last frame of the end that sends it. Progress is legal on control until
Complete, and so is Connections for a sender that was dialled.

The state is that of the conversation: each end steps it both with the messages that it sends and with those that it
receives. Messages may cross on the way. This works because no message that changes the state can cross a message of the
other end that the new state forbids. Therefore Complete waits for the last ManifestPart; answers are legal after a
Finish that follows the last part at once, as when a sender rejoins; and a Finish is legal where it crosses a Needed, or
the Complete that makes it meaningless.
"""

from typing import Literal

from filestreamer.wire import messages as m
from filestreamer.wire.errors import LocalProtocolError, RemoteProtocolError

Side = Literal["sender", "receiver"]
"""An end of a transfer: of the conversation, and the service that is that end."""
State = Literal["offer", "manifest", "moving", "finishing", "complete", "aborted"]

_REPORTS = (m.Declined, m.Notice, m.Verdicts)


def _staying(state: State, *messages: type) -> dict[type, State]:
    """Return the rows of messages that leave the state as it is."""
    return dict.fromkeys(messages, state)


_SENDER_ON_CONTROL: dict[State, dict[type, State]] = {
    "offer": _staying("offer", m.Progress, m.Connections) | {m.Offer: "manifest"},
    "manifest": _staying("manifest", m.ManifestPart, m.Withdrawn, m.Zeros, m.Progress, m.Connections),
    "moving": _staying("moving", m.Withdrawn, m.Zeros, m.Progress, m.Connections) | {m.Finish: "finishing"},
    "finishing": _staying("finishing", m.Progress, m.Connections, m.Finish),
    "complete": _staying("complete", m.Progress, m.Connections, m.Finish),
}
_RECEIVER_ON_CONTROL: dict[State, dict[type, State]] = {
    "offer": {m.Progress: "offer"},
    "manifest": _staying("manifest", m.Needed, m.Held, m.Zeros, *_REPORTS, m.Progress),
    "moving": _staying("moving", m.Needed, m.Held, m.Zeros, *_REPORTS, m.Progress) | {m.Complete: "complete"},
    "finishing": _staying("finishing", m.Held, m.Zeros, *_REPORTS, m.Progress)
    | {m.Needed: "moving", m.Complete: "complete"},
    "complete": {},
}
_SENDER_ON_DATA: dict[State, dict[type, State]] = {"moving": {m.ChunkHeader: "moving"}}
_RECEIVER_ON_DATA: dict[State, dict[type, State]] = {"moving": {m.ChunkAck: "moving"}}

TABLE: dict[tuple[Side, m.Role], dict[State, dict[type, State]]] = {
    ("sender", m.Role.CONTROL): _SENDER_ON_CONTROL,
    ("receiver", m.Role.CONTROL): _RECEIVER_ON_CONTROL,
    ("sender", m.Role.DATA): _SENDER_ON_DATA,
    ("receiver", m.Role.DATA): _RECEIVER_ON_DATA,
}
FIRST: dict[m.Role, State] = {m.Role.CONTROL: "offer", m.Role.DATA: "moving"}


class Session:
    """The state of one connection, as this side knows it. `dialled` is the end that was dialled."""

    def __init__(self, me: Side, role: m.Role, dialled: Side = "receiver") -> None:
        self.me: Side = me
        self.dialled: Side = dialled
        self.peer: Side = "receiver" if me == "sender" else "sender"
        self.role = role
        self.state: State = FIRST[role]

    def sending(self, message: m.Message) -> None:
        """Step with a message that this side sends. Raises LocalProtocolError where it is not legal now."""
        state = self._step(self.me, message)
        if state is None:
            raise LocalProtocolError(f"{type(message).__name__} can't be sent in state {self.state}")
        self.state = state

    def received(self, message: m.Message) -> None:
        """Step with a message from the peer. Raises RemoteProtocolError where it is not legal now."""
        state = self._step(self.peer, message)
        if state is None:
            raise RemoteProtocolError(f"{type(message).__name__} is not legal in state {self.state}")
        self.state = state

    def _step(self, side: Side, message: m.Message) -> State | None:
        if self.state == "aborted":
            return None
        if type(message) is m.Abort:
            return "aborted"
        if type(message) is m.Connections and self.dialled == "receiver":
            return None
        if type(message) is m.ManifestPart and message.last and side == "sender" and self.state == "manifest":
            return "moving"
        return TABLE[side, self.role][self.state].get(type(message))
