"""Greeting, Hello, Welcome, Proof at both ends, where the receiver dials (proto/README.md, "Opening" and "Proofs")."""

from collections.abc import Callable

import pytest

from filestreamer.wire import auth, features
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import Code, Refused, RemoteProtocolError, TransferFailed
from filestreamer.wire.opening import ReceiverOpening, SenderOpening
from filestreamer.wire.receiver_dials import DialledSenderOpening, DiallingReceiverOpening, Joined

TOKEN = b"a token of thirty-one characters"
INCARNATION = bytes(range(16))
TRANSFER = bytes(range(16, 32))
JOINED = Joined(TRANSFER, 0, 5, ("trees",))


class Meeting:
    """Both ends of one opening, the bodies passed by hand."""

    def __init__(
        self,
        receiver_token: bytes | None = TOKEN,
        sender_token: bytes | None = TOKEN,
        receiver_certificate: bytes = b"",
        sender_certificate: bytes = b"",
        *,
        role: m.Role = m.Role.DATA,
        is_own: bool = False,
        joined: Joined = JOINED,
        earlier: Callable[[bytes], bytes | None] | None = None,
    ) -> None:
        self.joins: list[m.Greeting] = []

        def join(greeting: m.Greeting) -> Joined:
            self.joins.append(greeting)
            return joined

        self.receiver = DiallingReceiverOpening(INCARNATION, role, receiver_token, receiver_certificate, is_own=is_own)
        self.sender = DialledSenderOpening(sender_token, sender_certificate, join=join, earlier=earlier)

    def hello(self, greeting: bytes | None = None) -> bytes:
        body = self.sender.take(greeting or self.receiver.greeting_body)
        assert body is not None
        return body

    def welcome(self) -> bytes:
        return self.receiver.answer(self.hello())


def code_of(caught: pytest.ExceptionInfo[RemoteProtocolError]) -> Code:
    return caught.value.code


@pytest.mark.parametrize("role", m.Role)
def test_an_opening_with_a_token(role: m.Role) -> None:
    meeting = Meeting(role=role)
    assert (meeting.sender.first_body, meeting.sender.awaits) == (b"", "Greeting")
    hello = meeting.hello()
    assert (meeting.sender.awaits, meeting.sender.is_over) == ("Welcome", False)
    welcome = meeting.receiver.answer(hello)
    assert meeting.receiver.awaits_proof
    proof = meeting.sender.take(welcome)
    assert meeting.sender.is_over
    assert proof is not None
    meeting.receiver.enter(proof)

    said = meeting.receiver.hello
    assert said is not None
    assert said == m.Hello(1, 1, TRANSFER, role, 0, 5, said.nonce, True, features.KNOWN, ("trees",))
    (greeting,) = meeting.joins
    assert greeting == m.Greeting(1, 1, INCARNATION, greeting.nonce, True, features.KNOWN, role)
    assert all(TOKEN not in body for body in (meeting.receiver.greeting_body, hello, welcome, proof))


def test_an_opening_without_a_token_ends_with_welcome() -> None:
    meeting = Meeting(None, None)
    hello = meeting.hello()
    assert not meeting.receiver.awaits_proof
    assert meeting.sender.take(meeting.receiver.answer(hello)) is None
    assert meeting.sender.is_over


def test_nothing_repeats() -> None:
    meetings = [Meeting() for _ in range(3)]
    hellos = [meeting.hello() for meeting in meetings]
    welcomes = [meeting.receiver.answer(hello) for meeting, hello in zip(meetings, hellos, strict=True)]
    proofs = [meeting.sender.take(welcome) for meeting, welcome in zip(meetings, welcomes, strict=True)]

    assert len({meeting.receiver.greeting_body for meeting in meetings}) == 3
    assert len(set(hellos)) == len(set(welcomes)) == len(set(proofs)) == 3


# --- what the sender refuses


def test_the_sender_proves_nothing_to_a_receiver_that_has_not() -> None:
    """Who was dialled proves last: neither without a proof, nor for a wrong one, nor for that of another opening."""
    other = Meeting()
    for welcome in (m.Welcome(b""), m.Welcome(bytes(32)), decode(other.welcome())):
        meeting = Meeting()
        meeting.hello()
        with pytest.raises(RemoteProtocolError, match="the token is wrong") as caught:
            meeting.sender.take(encode(welcome))
        assert code_of(caught) is Code.TOKEN
        assert not meeting.sender.is_over


def test_another_token() -> None:
    meeting = Meeting(receiver_token=TOKEN + b"!")
    with pytest.raises(RemoteProtocolError, match="the token is wrong"):
        meeting.sender.take(meeting.welcome())


@pytest.mark.parametrize(
    ("receiver_token", "sender_token", "says"),
    [(None, TOKEN, "pass the receiver --token-file"), (TOKEN, None, "pass the sender --token-file")],
)
def test_only_one_end_has_a_token(receiver_token: bytes | None, sender_token: bytes | None, says: str) -> None:
    meeting = Meeting(receiver_token, sender_token)
    with pytest.raises(RemoteProtocolError, match=says) as caught:
        meeting.hello()
    assert code_of(caught) is Code.TOKEN
    assert not meeting.joins  # nothing is looked up


def test_a_receiver_that_was_dialled_has_no_role_to_say() -> None:
    meeting = Meeting()
    with pytest.raises(RemoteProtocolError, match=r"Greeting\.role is missing") as caught:
        meeting.hello(ReceiverOpening(INCARNATION, (TOKEN,)).greeting_body)
    assert code_of(caught) is Code.PROTOCOL


def test_two_senders() -> None:
    hello = SenderOpening(TOKEN).hello(TRANSFER, m.Role.CONTROL, 0, 5)
    with pytest.raises(RemoteProtocolError, match=r"both ends send.*receiver --connect") as caught:
        Meeting().sender.take(hello)
    assert code_of(caught) is Code.PROTOCOL


def test_two_receivers() -> None:
    dialling = DiallingReceiverOpening(INCARNATION, m.Role.CONTROL, TOKEN)
    dialled = ReceiverOpening(INCARNATION, (TOKEN,))
    with pytest.raises(RemoteProtocolError, match=r"both ends receive.*sender --to"):
        dialled.receive(dialling.greeting_body)
    with pytest.raises(RemoteProtocolError, match=r"both ends receive.*--listen"):
        dialling.answer(dialled.greeting_body)


@pytest.mark.parametrize("message", [m.Proof(bytes(32)), m.Welcome(b""), m.Complete(True), m.Abort(Code.SOURCE, "")])
def test_anything_before_greeting(message: m.Message) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{type(message).__name__} before Greeting") as caught:
        Meeting().sender.take(encode(message))
    assert code_of(caught) is Code.PROTOCOL


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("message", [m.Proof(bytes(32)), m.Complete(True), m.Abort(Code.SOURCE, "")])
def test_anything_instead_of_welcome(message: m.Message, token: bytes | None) -> None:
    meeting = Meeting(token, token)
    meeting.hello()
    with pytest.raises(RemoteProtocolError, match=f"{type(message).__name__} instead of Welcome") as caught:
        meeting.sender.take(encode(message))
    assert code_of(caught) is Code.PROTOCOL


@pytest.mark.parametrize("is_greeted", [False, True])
def test_a_receiver_may_refuse(is_greeted: bool) -> None:
    meeting = Meeting()
    if is_greeted:
        meeting.hello()
    with pytest.raises(Refused, match="the receiver refused: full") as caught:
        meeting.sender.take(encode(m.Refusal(Code.LIMIT, "full")))
    assert caught.value.code is Code.LIMIT


def test_versions_of_the_receiver() -> None:
    for lowest, highest, fine in [(1, 9, True), (2, 9, False)]:
        meeting = Meeting(None, None)
        greeting = encode(m.Greeting(lowest, highest, INCARNATION, bytes(16), False, ("trees",), m.Role.DATA))
        if fine:
            meeting.hello(greeting)
            continue
        with pytest.raises(RemoteProtocolError, match="speaks protocol version 1, the receiver 2 to 9") as caught:
            meeting.hello(greeting)
        assert code_of(caught) is Code.VERSION


def test_a_feature_that_the_receiver_lacks() -> None:
    greeting = encode(m.Greeting(1, 1, INCARNATION, bytes(16), False, ("shards",), m.Role.DATA))
    with pytest.raises(TransferFailed, match="trees") as caught:
        Meeting(None, None).hello(greeting)
    assert caught.value.code is Code.POLICY


def test_what_join_raises_is_the_answer() -> None:
    def join(_: m.Greeting) -> Joined:
        raise TransferFailed(Code.UNKNOWN_TRANSFER, "who?")

    receiver = DiallingReceiverOpening(INCARNATION, m.Role.DATA, TOKEN)
    with pytest.raises(TransferFailed, match="who"):
        DialledSenderOpening(TOKEN, join=join).take(receiver.greeting_body)


def test_a_renewed_token() -> None:
    """The receiver of a transfer that is under way may have the token of before: the answer is a proof of that one."""
    asked: list[bytes] = []

    def earlier(incarnation: bytes) -> bytes | None:
        asked.append(incarnation)
        return TOKEN

    meeting = Meeting(TOKEN, TOKEN + b"2", earlier=earlier)
    proof = meeting.sender.take(meeting.welcome())
    assert proof is not None
    meeting.receiver.enter(proof)

    assert meeting.sender.token == TOKEN
    assert asked == [INCARNATION]


# --- what the receiver refuses


def test_a_sender_that_does_not_know_the_token() -> None:
    meeting = Meeting()
    welcome = decode(meeting.welcome())
    assert isinstance(welcome, m.Welcome)
    for mac in (bytes(32), welcome.mac):  # the receiver's own proof, echoed, is none of the sender
        with pytest.raises(RemoteProtocolError, match="the sender does not know the token") as caught:
            meeting.receiver.enter(encode(m.Proof(mac)))
        assert code_of(caught) is Code.TOKEN


def test_no_proof_is_taken_before_hello() -> None:
    with pytest.raises(RemoteProtocolError, match="does not know the token"):
        Meeting().receiver.enter(encode(m.Proof(bytes(32))))


def test_a_sender_without_a_token_gets_no_proof() -> None:
    """Also where somebody on the way has told it that none is required."""
    hello = m.Hello(1, 1, TRANSFER, m.Role.DATA, 0, 5, bytes(16))
    with pytest.raises(RemoteProtocolError, match="the sender has none") as caught:
        Meeting().receiver.answer(encode(hello))
    assert code_of(caught) is Code.TOKEN


def test_a_hello_of_another_role() -> None:
    hello = m.Hello(1, 1, TRANSFER, m.Role.CONTROL, 0, 5, bytes(16), True)
    with pytest.raises(RemoteProtocolError, match=r"Hello\.role is CONTROL, but Greeting\.role is DATA") as caught:
        Meeting().receiver.answer(encode(hello))
    assert code_of(caught) is Code.PROTOCOL


def test_versions_and_needs_of_the_sender() -> None:
    hello = m.Hello(1, 1, TRANSFER, m.Role.DATA, 0, 5, bytes(16), True)
    with pytest.raises(RemoteProtocolError, match="version 2 to 3, this receiver 1") as caught:
        Meeting().receiver.answer(encode(hello._replace(lowest_version=2, highest_version=3)))
    assert code_of(caught) is Code.VERSION
    with pytest.raises(RemoteProtocolError, match="does not know the feature 'x-1'") as caught:
        Meeting().receiver.answer(encode(hello._replace(features=("x-1",), needs=("x-1",))))
    assert code_of(caught) is Code.POLICY
    assert Meeting().receiver.answer(encode(hello._replace(highest_version=9)))


@pytest.mark.parametrize("message", [m.Proof(bytes(32)), m.Welcome(b""), m.Offer(8, None, False, 0)])
def test_anything_instead_of_hello(message: m.Message) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{type(message).__name__} instead of Hello"):
        Meeting().receiver.answer(encode(message))


def test_anything_instead_of_proof() -> None:
    meeting = Meeting()
    meeting.welcome()
    with pytest.raises(RemoteProtocolError, match="Offer instead of Proof"):
        meeting.receiver.enter(encode(m.Offer(8, None, False, 0)))


def test_a_sender_may_refuse_instead_of_hello_and_of_proof() -> None:
    refusal = encode(m.Refusal(Code.SHUTTING_DOWN, "later"))
    meeting = Meeting()
    for take in (meeting.receiver.answer, meeting.receiver.enter):
        with pytest.raises(Refused, match="the sender refused: later") as caught:
            take(refusal)
        assert caught.value.retryable


def test_a_sender_of_another_user_says_what_to_pass() -> None:
    meeting = Meeting(is_own=True)
    meeting.welcome()
    with pytest.raises(RemoteProtocolError, match="than this user's own: pass --token-file") as caught:
        meeting.receiver.enter(encode(m.Refusal(Code.TOKEN, "the token is wrong")))
    assert code_of(caught) is Code.TOKEN


# --- somebody in between


def test_each_changed_byte_is_noticed_by_the_sender() -> None:
    """Of the Greeting and of the Hello: whatever still decodes, no proof of the sender follows."""
    noticed = 0
    for changes_greeting in (True, False):
        for position in range(200):
            meeting = Meeting()
            greeting = meeting.receiver.greeting_body
            try:
                hello = meeting.hello(flipped(greeting, position) if changes_greeting else greeting)
                welcome = meeting.receiver.answer(hello if changes_greeting else flipped(hello, position))
            except (RemoteProtocolError, TransferFailed, IndexError):
                continue
            with pytest.raises(RemoteProtocolError, match="the token is wrong"):
                meeting.sender.take(welcome)
            noticed += 1
    assert noticed >= 80  # at least the bytes of the ids


def flipped(body: bytes, position: int) -> bytes:
    changed = bytearray(body)
    changed[position] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("certificate", [b"", b"c" * 32], ids=["clear text", "one certificate for both"])
@pytest.mark.parametrize("strips_role", [False, True])
def test_a_relay_between_two_ends_that_dial(certificate: bytes, strips_role: bool) -> None:
    """A sender and a receiver that both dial it: neither proves anything to the other, with or without TLS."""
    receiver = DiallingReceiverOpening(INCARNATION, m.Role.CONTROL, TOKEN, certificate)
    sender = SenderOpening(TOKEN, certificate)
    hello = sender.hello(TRANSFER, m.Role.CONTROL, 0, 5)
    welcome = receiver.answer(hello)
    greeting = decode(receiver.greeting_body)
    assert isinstance(greeting, m.Greeting)
    if not strips_role:
        with pytest.raises(RemoteProtocolError, match=r"Greeting\.role"):
            sender.greet(receiver.greeting_body)
        return
    proof = sender.greet(encode(greeting._replace(role=None)))
    assert proof is not None
    with pytest.raises(RemoteProtocolError, match="does not know the token"):
        sender.enter(welcome)
    with pytest.raises(RemoteProtocolError, match="does not know the token"):
        receiver.enter(proof)


@pytest.mark.parametrize("adds_role", [False, True])
def test_a_relay_between_two_ends_that_are_dialled(adds_role: bool) -> None:
    receiver = ReceiverOpening(INCARNATION, (TOKEN,))
    sender = DialledSenderOpening(TOKEN, join=lambda _: JOINED)
    greeting = decode(receiver.greeting_body)
    assert isinstance(greeting, m.Greeting)
    if not adds_role:
        with pytest.raises(RemoteProtocolError, match=r"Greeting\.role is missing"):
            sender.take(receiver.greeting_body)
        return
    hello = sender.take(encode(greeting._replace(role=m.Role.DATA)))
    assert hello is not None
    assert receiver.receive(hello) is None  # neither end goes first: both wait for a proof
    with pytest.raises(RemoteProtocolError, match="the token is wrong"):
        receiver.receive(encode(m.Proof(bytes(32))))
    with pytest.raises(RemoteProtocolError, match="the token is wrong"):
        sender.take(encode(m.Welcome(bytes(32))))


@pytest.mark.parametrize(("receiver", "sender"), [(b"c" * 32, b"d" * 32), (b"c" * 32, b""), (b"", b"d" * 32)])
def test_a_man_in_the_middle_with_a_certificate_of_his_own(receiver: bytes, sender: bytes) -> None:
    meeting = Meeting(receiver_certificate=receiver, sender_certificate=sender)
    with pytest.raises(RemoteProtocolError, match="the token is wrong"):
        meeting.sender.take(meeting.welcome())


def test_inside_tls() -> None:
    meeting = Meeting(receiver_certificate=b"c" * 32, sender_certificate=b"c" * 32)
    proof = meeting.sender.take(meeting.welcome())
    assert proof is not None
    meeting.receiver.enter(proof)


def test_a_feature_that_is_taken_out_of_the_greeting() -> None:
    meeting = Meeting(joined=JOINED._replace(needs=()))
    greeting = decode(meeting.receiver.greeting_body)
    assert isinstance(greeting, m.Greeting)
    hello = meeting.hello(encode(greeting._replace(features=())))
    with pytest.raises(RemoteProtocolError, match="the token is wrong"):
        meeting.sender.take(meeting.receiver.answer(hello))


# --- jobs


def meeting_of(receiver: str, sender: str, token: bytes | None = TOKEN) -> Meeting:
    meeting = Meeting(token, token, joined=JOINED._replace(job=sender))
    meeting.receiver = DiallingReceiverOpening(INCARNATION, m.Role.DATA, token, job=receiver)
    return meeting


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize(("receiver", "sender"), [("photos", "photos"), ("", "photos"), ("", "")])
def test_ends_of_one_job(receiver: str, sender: str, token: bytes | None) -> None:
    meeting = meeting_of(receiver, sender, token)
    proof = meeting.sender.take(meeting.welcome())
    assert meeting.sender.is_over
    if proof is not None:
        meeting.receiver.enter(proof)


@pytest.mark.parametrize("sender", ["mails", ""])
def test_ends_of_different_jobs(sender: str) -> None:
    """The sender sees it first; a sender of an earlier version, which does not look, is told after its proof."""
    meeting = meeting_of("photos", sender)
    hello, receiver = meeting.hello(), meeting.receiver
    with pytest.raises(RemoteProtocolError, match="'photos'") as caught:
        meeting.sender.take(receiver.answer(hello))
    assert code_of(caught) is Code.JOB
    assert not meeting.sender.is_over
    # As such a sender proves the token:
    transcript = auth.Transcript(receiver.greeting_body, hello, b"", "sender")
    proof = transcript.sender_proof(TOKEN, transcript.receiver_proof(TOKEN))
    with pytest.raises(RemoteProtocolError, match="'photos'") as caught:
        receiver.enter(encode(m.Proof(proof)))
    assert code_of(caught) is Code.JOB


@pytest.mark.parametrize("sender", ["mails", ""])
def test_ends_of_different_jobs_without_a_token(sender: str) -> None:
    meeting = meeting_of("photos", sender, None)
    with pytest.raises(RemoteProtocolError, match="'photos'") as caught:
        meeting.welcome()
    assert code_of(caught) is Code.JOB
    assert meeting.receiver.hello is None  # so that what the sender is told is a Refusal


def test_a_sender_goes_on_only_with_its_own_job() -> None:
    meeting = meeting_of("", "photos")
    welcome = decode(meeting.welcome())
    assert isinstance(welcome, m.Welcome)
    with pytest.raises(RemoteProtocolError) as caught:
        meeting.sender.take(encode(welcome._replace(job="")))
    assert code_of(caught) is Code.JOB
