"""Two ends, each with its own Session, and messages under way between them: late, crossing, many at once.

The claim (filestreamer/wire/session.py, proto/README.md "Sessions"): two ends that send only what their own Session
allows never see a message of the other one refused. Queues are in order, as TCP is; how long a message stays in one is
up to hypothesis.
"""

from collections import deque
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, LocalProtocolError, RemoteProtocolError
from filestreamer.wire.session import Session, Side

ID = bytes(16)
CONTROL: dict[Side, list[m.Message]] = {
    "sender": [
        m.Offer(8, None, False, 0),
        m.ManifestPart(0, (m.Entry(b"f", m.EntryType.FILE, 8, 0o644, 0),), False),
        m.ManifestPart(1, (), True),
        m.Progress(m.Phase.MOVING, 0, 0),
        m.Finish(1, ID),
    ],
    "receiver": [
        m.Needed((m.FileRange(0, 1),), ()),
        m.Held(0, 0, ID),
        m.Progress(m.Phase.SYNCING, 0, 0),
        m.Complete(True),
    ],
}
CONTROL_DIALLED = {**CONTROL, "sender": [*CONTROL["sender"], m.Connections(4)]}
"""Of a sender that was dialled."""
DATA: dict[Side, list[m.Message]] = {
    "sender": [m.ChunkHeader(0, (m.Segment(0, 0, 8),))],
    "receiver": [m.ChunkAck(m.Verdict.OK, (0,))],
}
ABORT = m.Abort(Code.SOURCE, "")
SIDES: tuple[Side, Side] = ("sender", "receiver")


class TwoEnds(RuleBasedStateMachine):
    """One connection: what each end believes, and what is under way to it."""

    said: dict[Side, list[m.Message]]
    role: m.Role
    dialled: Side = "receiver"

    def __init__(self) -> None:
        super().__init__()
        self.connect()

    def connect(self) -> None:
        """Begin, or begin again: what was under way is lost with the old connection."""
        self.ends = {side: Session(side, self.role, self.dialled) for side in SIDES}
        self.under_way: dict[Side, deque[m.Message]] = {side: deque() for side in SIDES}
        self.aborted_itself: set[Side] = set()

    @initialize(ahead=st.integers(0, 3))
    def begin(self, ahead: int) -> None:
        """Let the sender begin a conversation so far: else most runs would try what is not legal yet."""
        for message in self.said["sender"][:ahead]:
            self.say("sender", message)

    def say(self, side: Side, message: m.Message) -> None:
        """Send what the own Session allows; what it does not allow changes nothing."""
        end = self.ends[side]
        before = end.state
        try:
            end.sending(message)
        except LocalProtocolError:
            assert end.state == before
            return
        self.under_way[end.peer].append(message)
        if message is ABORT:
            self.aborted_itself.add(side)

    @rule(side=st.sampled_from(SIDES), data=st.data())
    def sends(self, side: Side, data: st.DataObject) -> None:
        """One end says something."""
        self.say(side, data.draw(st.sampled_from(self.said[side])))

    @rule(side=st.sampled_from(SIDES), data=st.data())
    def sends_many(self, side: Side, data: st.DataObject) -> None:
        """One end sends several messages before it receives any."""
        for message in data.draw(st.lists(st.sampled_from(self.said[side]), min_size=2, max_size=6)):
            self.say(side, message)

    @rule(side=st.sampled_from(SIDES))
    def reads(self, side: Side) -> None:
        """One end reads the next message, which it must not refuse."""
        if not self.under_way[side]:
            return
        message = self.under_way[side].popleft()
        if side in self.aborted_itself:
            return  # "what still arrives is read and dropped"
        self.ends[side].received(message)
        if message is ABORT:
            assert not self.under_way[side], "something follows an Abort"

    @rule(side=st.sampled_from(SIDES))
    def reads_all(self, side: Side) -> None:
        """One end reads everything that is under way to it."""
        while self.under_way[side]:
            self.reads(side)

    @precondition(lambda self: self.steps_left_for_an_abort())
    @rule(side=st.sampled_from(SIDES))
    def aborts(self, side: Side) -> None:
        """One end says Abort, in whatever state; the other may do so at the same time."""
        self.say(side, ABORT)

    def steps_left_for_an_abort(self) -> bool:
        """Let conversations go on for a while before one ends."""
        return any(len(queue) > 2 for queue in self.under_way.values())

    @precondition(lambda self: bool(self.aborted_itself))
    @rule()
    def rejoins(self) -> None:
        """Begin another connection: this one is over."""
        self.connect()

    @invariant()
    def ends_agree_when_nothing_is_under_way(self) -> None:
        """They are in the same state, but for one case: a Finish that crossed a Needed.

        Then the sender assigns chunks again, and the receiver knows that another Finish follows.
        """
        if any(self.under_way.values()) or self.aborted_itself:
            return
        states = self.ends["sender"].state, self.ends["receiver"].state
        assert states[0] == states[1] or states == ("moving", "finishing"), states


class ControlEnds(TwoEnds):
    """The control connection."""

    said = CONTROL
    role = m.Role.CONTROL


class ControlEndsOfADialledSender(ControlEnds):
    """The same where the receiver dials."""

    said = CONTROL_DIALLED
    dialled = "sender"


class DataEnds(TwoEnds):
    """A data connection."""

    said = DATA
    role = m.Role.DATA


PATIENT = settings(max_examples=400, stateful_step_count=40)
TestControl = ControlEnds.TestCase
TestControl.settings = PATIENT
TestControlOfADialledSender = ControlEndsOfADialledSender.TestCase
TestControlOfADialledSender.settings = PATIENT
TestData = DataEnds.TestCase
TestData.settings = settings(max_examples=50, stateful_step_count=20)


# --- the machine would see it


def deaf_to_progress(self: Session, message: m.Message) -> None:
    """Refuse a heartbeat after Finish: a table with one entry too few."""
    if self.me == "receiver" and self.state == "finishing" and isinstance(message, m.Progress):
        raise RemoteProtocolError("Progress is not legal in state finishing")
    received(self, message)


received = Session.received


def test_the_machine_finds_a_crossing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of the machine itself: with one entry missing in the table, it fails."""
    monkeypatch.setattr(Session, "received", deaf_to_progress)
    case: Any = ControlEnds.TestCase()
    case.settings = settings(PATIENT, phases=[Phase.generate], print_blob=False)
    with pytest.raises(RemoteProtocolError, match="finishing"):
        case.runTest()
