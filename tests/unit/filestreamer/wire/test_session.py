"""Which message is legal when (proto/README.md, "Sessions"). The whole table is checked in tests/property."""

from collections import deque
from typing import get_args

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, LocalProtocolError, RemoteProtocolError
from filestreamer.wire.session import FIRST, TABLE, Session, Side, State
from tests.golden.vectors import load, message_of

ID = bytes(16)
OFFER = m.Offer(8, None, False, 0)
PART = m.ManifestPart(0, (m.Entry(b"f", m.EntryType.FILE, 8, 0o644, 0),), False)
LAST = m.ManifestPart(1, (), True)
NEEDED = m.Needed((m.FileRange(0, 1),), ())
HELD = m.Held(0, 0, ID)
PROGRESS = m.Progress(m.Phase.MOVING, 0, 0)
FINISH = m.Finish(1, ID)
COMPLETE = m.Complete(True)
HEADER = m.ChunkHeader(0, (m.Segment(0, 0, 8),))
ACK = m.ChunkAck(m.Verdict.OK, (0,))
ABORT = m.Abort(Code.SOURCE, "")
CONNECTIONS = m.Connections(4)

Said = tuple[Side, m.Message]

# Conversations that have to work, as (who, what), on control.
CONVERSATIONS: dict[str, list[Said]] = {
    "a file that is new": [
        ("sender", OFFER),
        ("sender", LAST),
        ("receiver", NEEDED),
        ("sender", PROGRESS),
        ("receiver", PROGRESS),
        ("sender", FINISH),
        ("receiver", PROGRESS),
        ("receiver", COMPLETE),
    ],
    "a file that is here in part": [
        ("sender", OFFER),
        ("sender", PART),
        ("receiver", NEEDED),
        ("sender", LAST),
        ("receiver", HELD),
        ("receiver", NEEDED),
        ("receiver", HELD),
        ("sender", FINISH),
        ("receiver", COMPLETE),
    ],
    "an empty file: nothing to be answered": [
        ("sender", OFFER),
        ("sender", LAST),
        ("sender", FINISH),
        ("receiver", COMPLETE),
    ],
    "something is missing after all, twice": [
        ("sender", OFFER),
        ("sender", LAST),
        ("receiver", NEEDED),
        ("sender", FINISH),
        ("receiver", NEEDED),
        ("receiver", NEEDED),
        ("sender", FINISH),
        ("receiver", NEEDED),
        ("sender", FINISH),
        ("receiver", COMPLETE),
    ],
    "rejoined when everything was done": [
        ("sender", OFFER),
        ("sender", LAST),
        ("sender", FINISH),
        ("receiver", HELD),
        ("receiver", HELD),
        ("receiver", COMPLETE),
    ],
    "committed already": [("sender", OFFER), ("sender", LAST), ("receiver", COMPLETE)],
    "heartbeats before anything else": [("receiver", PROGRESS), ("sender", PROGRESS), ("sender", OFFER)],
    "the sender goes on while Complete is under way": [
        ("sender", OFFER),
        ("sender", LAST),
        ("receiver", COMPLETE),
        ("sender", PROGRESS),
        ("sender", FINISH),
    ],
}


def other(side: Side) -> Side:
    return "receiver" if side == "sender" else "sender"


def ends(role: m.Role = m.Role.CONTROL, dialled: Side = "receiver") -> dict[Side, Session]:
    return {"sender": Session("sender", role, dialled), "receiver": Session("receiver", role, dialled)}


def say(both: dict[Side, Session], who: Side, message: m.Message) -> None:
    both[who].sending(message)
    both[other(who)].received(message)


def after(messages: list[Said], dialled: Side = "receiver") -> dict[Side, Session]:
    both = ends(dialled=dialled)
    for who, message in messages:
        say(both, who, message)
    return both


@pytest.mark.parametrize("said", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_conversation(said: list[Said]) -> None:
    both = after(said)

    assert both["sender"].state == both["receiver"].state


def test_complete_is_the_end() -> None:
    assert after(CONVERSATIONS["a file that is new"])["sender"].state == "complete"


def test_data() -> None:
    both = ends(m.Role.DATA)
    say(both, "sender", HEADER)
    say(both, "sender", HEADER)
    say(both, "receiver", ACK)

    assert both["sender"].state == both["receiver"].state == "moving"


@pytest.mark.parametrize("said", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_sender_that_was_dialled_says_how_many_connections_it_wants(said: list[Said]) -> None:
    """Everywhere, and nothing else changes; also where Complete is under way."""
    both = after([each for one in said for each in (("sender", CONNECTIONS), one)], dialled="sender")
    say(both, "sender", CONNECTIONS)

    assert both["sender"].state == both["receiver"].state == after(said)["sender"].state


# --- what is not legal


@pytest.mark.parametrize("said", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize(("dialled", "who"), [("receiver", "sender"), ("receiver", "receiver"), ("sender", "receiver")])
def test_nobody_else_says_how_many_connections_are_wanted(said: list[Said], dialled: Side, who: Side) -> None:
    both = after(said, dialled)

    with pytest.raises(LocalProtocolError, match="Connections can't be sent"):
        both[who].sending(CONNECTIONS)
    with pytest.raises(RemoteProtocolError, match="Connections is not legal") as caught:
        both[other(who)].received(CONNECTIONS)
    assert caught.value.code is Code.PROTOCOL


@pytest.mark.parametrize(
    ("said", "who", "message"),
    [
        ([], "sender", LAST),  # no Offer before
        ([], "sender", FINISH),
        ([], "receiver", NEEDED),
        ([("sender", OFFER)], "sender", OFFER),  # twice
        ([("sender", OFFER)], "sender", FINISH),  # the manifest is open
        ([("sender", OFFER)], "receiver", COMPLETE),
        ([("sender", OFFER), ("sender", PART)], "receiver", COMPLETE),
        ([("sender", OFFER), ("sender", LAST)], "sender", PART),  # after the last one
        ([("sender", OFFER), ("sender", LAST)], "receiver", OFFER),  # the wrong side
        ([("sender", OFFER), ("sender", LAST)], "receiver", FINISH),
        ([("sender", OFFER), ("sender", LAST)], "sender", NEEDED),
        ([("sender", OFFER), ("sender", LAST)], "sender", HEADER),  # the wrong connection
        ([("sender", OFFER), ("sender", LAST)], "receiver", ACK),
        (CONVERSATIONS["committed already"], "receiver", COMPLETE),
        (CONVERSATIONS["committed already"], "receiver", PROGRESS),
        (CONVERSATIONS["committed already"], "receiver", NEEDED),
        (CONVERSATIONS["committed already"], "sender", OFFER),
    ],
)
def test_what_is_not_legal_is_refused_at_both_ends(said: list[Said], who: Side, message: m.Message) -> None:
    both = after(said)
    state = both[who].state

    with pytest.raises(LocalProtocolError, match=f"{type(message).__name__} can't be sent in state {state}"):
        both[who].sending(message)
    with pytest.raises(RemoteProtocolError, match=f"{type(message).__name__} is not legal in state {state}") as caught:
        both[other(who)].received(message)
    assert caught.value.code is Code.PROTOCOL
    assert both["sender"].state == both["receiver"].state == state  # what is refused changes nothing


@pytest.mark.parametrize("role", m.Role)
@pytest.mark.parametrize("name", ["Greeting", "Hello", "Proof", "Welcome", "Refusal"])
def test_the_opening_is_over(role: m.Role, name: str) -> None:
    vector = next(v for v in load("messages.json")["vectors"] if v["message"] == name)
    message = message_of(name, vector["fields"])

    for session in ends(role).values():
        with pytest.raises(RemoteProtocolError):
            session.received(message)
        with pytest.raises(LocalProtocolError):
            session.sending(message)


@pytest.mark.parametrize("role", m.Role)
@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_nothing_follows_an_abort(role: m.Role, who: Side) -> None:
    both = ends(role)
    say(both, who, ABORT)

    assert both["sender"].state == both["receiver"].state == "aborted"
    for message in (ABORT, PROGRESS, HEADER, ACK, OFFER):
        with pytest.raises(LocalProtocolError):
            both[who].sending(message)
        with pytest.raises(RemoteProtocolError):
            both[who].received(message)


def test_sides_know_each_other() -> None:
    assert (Session("sender", m.Role.DATA).me, Session("sender", m.Role.DATA).peer) == ("sender", "receiver")
    assert (Session("receiver", m.Role.DATA).me, Session("receiver", m.Role.DATA).peer) == ("receiver", "sender")


# --- no two messages cross to harm


def test_no_legal_message_crosses_another_to_harm() -> None:
    """Explore every order in which two ends can send what they may, and read what is under way, three messages deep.

    Whatever is legal for the end that sends it must be legal for the end that reads it, however late it reads.
    """
    messages: list[tuple[Side, m.Message]] = [
        ("sender", OFFER),
        ("sender", PART),
        ("sender", LAST),
        ("sender", PROGRESS),
        ("sender", FINISH),
        ("receiver", NEEDED),
        ("receiver", HELD),
        ("receiver", PROGRESS),
        ("receiver", COMPLETE),
    ]
    under_way = tuple[m.Message, ...]
    start: tuple[State, State, under_way, under_way] = ("offer", "offer", (), ())
    seen, todo = {start}, deque([start])
    while todo:
        sender, receiver, to_receiver, to_sender = todo.popleft()
        following = []
        for who, message in messages:
            both = in_states(sender, receiver)
            queue = to_receiver if who == "sender" else to_sender
            try:
                both[who].sending(message)
            except LocalProtocolError:
                continue
            if len(queue) < 3:
                sent = (*queue, message)
                queues = (sent, to_sender) if who == "sender" else (to_receiver, sent)
                following.append((both["sender"].state, both["receiver"].state, *queues))
        if to_receiver:
            both = in_states(sender, receiver)
            both["receiver"].received(to_receiver[0])
            following.append((sender, both["receiver"].state, to_receiver[1:], to_sender))
        if to_sender:
            both = in_states(sender, receiver)
            both["sender"].received(to_sender[0])
            following.append((both["sender"].state, receiver, to_receiver, to_sender[1:]))
        for step in following:
            if step not in seen:
                seen.add(step)
                todo.append(step)

    assert {sender for sender, *_ in seen} == set(get_args(State)) - {"aborted"}


def in_states(sender: State, receiver: State) -> dict[Side, Session]:
    both = ends()
    both["sender"].state, both["receiver"].state = sender, receiver
    return both


def test_every_state_is_in_the_table() -> None:
    for (_, role), states in TABLE.items():
        expected = {"moving"} if role is m.Role.DATA else set(get_args(State)) - {"aborted"}
        assert set(states) == expected
        assert FIRST[role] in states
