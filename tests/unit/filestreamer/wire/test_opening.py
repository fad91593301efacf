"""Greeting, Hello, Proof, Welcome at both ends (proto/README.md, "Opening" and "Proofs")."""

import pytest

from filestreamer.wire import auth, features, limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import Code, LocalProtocolError, Refused, RemoteProtocolError
from filestreamer.wire.opening import ReceiverOpening, SenderOpening, random_id

TOKEN = b"a token of thirty-one characters"
INCARNATION = bytes(range(16))
TRANSFER = bytes(range(16, 32))


def some(token: bytes | None) -> tuple[bytes, ...] | None:
    """Return the tokens of a receiver that requires this one, or none."""
    return None if token is None else (token,)


class Meeting:
    """Both ends of one opening, the bodies passed by hand."""

    def __init__(
        self,
        receiver_token: bytes | None = TOKEN,
        sender_token: bytes | None = TOKEN,
        receiver_certificate: bytes = b"",
        sender_certificate: bytes = b"",
    ) -> None:
        self.receiver = ReceiverOpening(INCARNATION, some(receiver_token), receiver_certificate)
        self.sender = SenderOpening(sender_token, sender_certificate)

    def answer(self, greeting: bytes | None = None, role: m.Role = m.Role.DATA) -> tuple[bytes, ...]:
        return self.sender.answer(greeting or self.receiver.greeting_body, TRANSFER, role, 0, 5)

    def receive(self, *bodies: bytes) -> m.Hello | None:
        """Give the receiver these bodies; return what it said to the last one."""
        answers = [self.receiver.receive(body) for body in bodies]
        assert answers[:-1] == [None] * (len(bodies) - 1), "let in too early"
        return answers[-1]


def code_of(caught: pytest.ExceptionInfo[RemoteProtocolError]) -> Code:
    return caught.value.code


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("role", m.Role)
def test_an_opening(token: bytes | None, role: m.Role) -> None:
    meeting = Meeting(token, token)
    hello = meeting.receive(*meeting.answer(role=role))
    meeting.sender.enter(encode(meeting.receiver.welcome()))

    assert hello is not None
    assert hello == m.Hello(1, 1, TRANSFER, role, 0, 5, hello.nonce, token is not None, features.KNOWN)
    assert meeting.sender.incarnation == INCARNATION


def test_the_greeting() -> None:
    greeting = decode(Meeting().receiver.greeting_body)

    assert isinstance(greeting, m.Greeting)
    assert greeting == m.Greeting(1, 1, INCARNATION, greeting.nonce, True, features.KNOWN)
    open_to_all = decode(Meeting(None).receiver.greeting_body)
    assert isinstance(open_to_all, m.Greeting)
    assert not open_to_all.token_required


def test_nothing_repeats() -> None:
    """Nonces, and so proofs, are others on each connection."""
    meetings = [Meeting() for _ in range(3)]
    answers = [meeting.answer() for meeting in meetings]
    for meeting, answer in zip(meetings, answers, strict=True):
        meeting.receive(*answer)

    assert len({meeting.receiver.greeting_body for meeting in meetings}) == 3
    assert len({hello for hello, _ in answers}) == 3
    assert len({proof for _, proof in answers}) == 3
    assert len({meeting.receiver.welcome() for meeting in meetings}) == 3
    assert len({random_id() for _ in range(100)}) == 100


def test_the_token_is_never_on_the_wire() -> None:
    meeting = Meeting()
    bodies = [meeting.receiver.greeting_body, *meeting.answer()]
    meeting.receive(*bodies[1:])
    bodies.append(encode(meeting.receiver.welcome()))

    assert all(TOKEN not in body for body in bodies)


# --- what the receiver refuses


def test_another_token() -> None:
    meeting = Meeting(sender_token=TOKEN + b"!")

    with pytest.raises(RemoteProtocolError, match="the token is wrong") as caught:
        meeting.receive(*meeting.answer())
    assert code_of(caught) is Code.TOKEN


def tried(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the tokens that are tried from now on, in order, with repeats."""
    found: list[bytes] = []
    prove = auth.Transcript.sender_proof

    def proving(transcript: auth.Transcript, token: bytes, before: bytes = b"") -> bytes:
        found.append(token)
        return prove(transcript, token, before)

    monkeypatch.setattr(auth.Transcript, "sender_proof", proving)
    return found


def check_answer(meeting: Meeting, proof: bytes, of_sender: bytes, *, is_right: bool) -> None:
    """Check that a proof lets the sender in, and that the receiver proves the same token; or that it is refused."""
    if is_right:
        assert meeting.receiver.receive(proof) is not None
        assert meeting.receiver.token == of_sender
        meeting.sender.enter(encode(meeting.receiver.welcome()))
    else:
        with pytest.raises(RemoteProtocolError, match=r"^the token is wrong$") as caught:
            meeting.receiver.receive(proof)
        assert code_of(caught) is Code.TOKEN


MANY = [b"the token of user %d" % number for number in range(1024)]


@pytest.mark.parametrize("of_sender", [MANY[0], MANY[700], MANY[-1], TOKEN])
def test_each_of_many_tokens_is_tried(of_sender: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is right, and if none is. The receiver proves the same one, and no other."""
    meeting = Meeting(sender_token=of_sender)
    meeting.receiver = ReceiverOpening(INCARNATION, MANY)
    hello, proof = meeting.answer()
    assert meeting.receiver.receive(hello) is None
    found = tried(monkeypatch)
    check_answer(meeting, proof, of_sender, is_right=of_sender in MANY)
    assert found == MANY


def test_no_token_at_all_lets_nobody_in() -> None:
    """A receiver whose users have not come yet: that is not one that requires none."""
    meeting = Meeting()
    meeting.receiver = ReceiverOpening(INCARNATION, ())
    with pytest.raises(RemoteProtocolError, match=r"^the token is wrong$"):
        meeting.receive(*meeting.answer())


RENEWED = b"the token that was there before"


@pytest.mark.parametrize("transfer", [TRANSFER, bytes(16)])
@pytest.mark.parametrize("of_sender", [TOKEN, RENEWED, b"a token that nobody has, or ever had"])
def test_the_token_of_before_is_for_the_transfer_that_began_with_it(
    of_sender: bytes, transfer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried for every other one, too, and then answered as any wrong token."""
    meeting = Meeting(sender_token=of_sender)
    meeting.receiver = ReceiverOpening(INCARNATION, (TOKEN,), earlier=lambda: {RENEWED: {bytes([1] * 16), transfer}})
    hello, proof = meeting.answer()
    meeting.receiver.receive(hello)
    found = tried(monkeypatch)
    is_right = of_sender == TOKEN or (of_sender == RENEWED and transfer == TRANSFER)
    check_answer(meeting, proof, of_sender, is_right=is_right)
    assert found == [TOKEN, RENEWED]


def test_a_hello_of_another_opening_is_let_in_by_its_own_proof_only() -> None:
    """Replay: what a sender said to one Greeting is worth nothing behind another."""
    recorded = Meeting().answer()
    meeting = Meeting()

    with pytest.raises(RemoteProtocolError) as caught:
        meeting.receive(*recorded)
    assert code_of(caught) is Code.TOKEN


def test_a_proof_of_another_connection() -> None:
    meeting = Meeting()
    hello, _ = meeting.answer()
    other_hello, other_proof = SenderOpening(TOKEN).answer(meeting.receiver.greeting_body, TRANSFER, m.Role.DATA, 1, 5)
    assert hello != other_hello

    with pytest.raises(RemoteProtocolError) as caught:
        meeting.receive(hello, other_proof)
    assert code_of(caught) is Code.TOKEN


def test_each_changed_byte_of_the_hello_is_noticed() -> None:
    """Whatever still decodes as a Hello of this version fails at its proof."""
    meeting = Meeting()
    hello, proof = meeting.answer()
    let_in = refused = 0
    for position in range(len(hello)):
        changed = bytearray(hello)
        changed[position] ^= 1
        receiver = ReceiverOpening(INCARNATION, (TOKEN,))
        receiver.greeting_body = meeting.receiver.greeting_body
        try:
            assert receiver.receive(bytes(changed)) is None
        except RemoteProtocolError:
            refused += 1
            continue
        let_in += 1
        with pytest.raises(RemoteProtocolError, match="the token is wrong"):
            receiver.receive(proof)

    assert let_in >= 32  # at least the bytes of both ids
    assert refused


def test_each_changed_byte_of_the_greeting_is_noticed() -> None:
    meeting = Meeting()
    noticed = 0
    for position in range(len(meeting.receiver.greeting_body)):
        changed = bytearray(meeting.receiver.greeting_body)
        changed[position] ^= 1
        try:
            answer = SenderOpening(TOKEN).answer(bytes(changed), TRANSFER, m.Role.DATA, 0, 5)
        except RemoteProtocolError:
            continue
        receiver = ReceiverOpening(INCARNATION, (TOKEN,))
        receiver.greeting_body = meeting.receiver.greeting_body
        assert receiver.receive(answer[0]) is None
        with pytest.raises(RemoteProtocolError, match="the token is wrong"):
            receiver.receive(answer[1])
        noticed += 1

    assert noticed >= 32


@pytest.mark.parametrize("message", [m.Proof(bytes(32)), m.Welcome(b""), m.Complete(True), m.Abort(Code.SOURCE, "")])
def test_anything_before_hello(message: m.Message) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{type(message).__name__} before Hello") as caught:
        Meeting().receive(encode(message))
    assert code_of(caught) is Code.PROTOCOL


def test_no_proof_where_one_is_wanted() -> None:
    meeting = Meeting()
    hello, _ = meeting.answer()

    for body in (hello, encode(m.Offer(8, None, False, 0))):
        receiver = ReceiverOpening(INCARNATION, (TOKEN,))
        assert receiver.receive(hello) is None
        with pytest.raises(RemoteProtocolError, match="instead of Proof") as caught:
            receiver.receive(body)
        assert code_of(caught) is Code.TOKEN


def test_a_sender_without_a_token_is_refused_by_its_hello() -> None:
    """Nothing that it may have sent behind Hello is read."""
    hello = SenderOpening(None).hello(TRANSFER, m.Role.CONTROL, 0, 5)

    with pytest.raises(RemoteProtocolError, match="requires a token: pass the sender --token-file") as caught:
        Meeting().receive(hello)
    assert code_of(caught) is Code.TOKEN


@pytest.mark.parametrize(("lowest", "highest", "said"), [(2, 2, "2"), (2, 9, "2 to 9")])
def test_a_sender_that_speaks_later_versions_alone(lowest: int, highest: int, said: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"protocol version 1, the sender {said}: update the older") as caught:
        Meeting().receive(encode(m.Hello(lowest, highest, TRANSFER, m.Role.DATA, 0, 5, bytes(16))))
    assert code_of(caught) is Code.VERSION


def test_a_sender_that_speaks_later_versions_as_well() -> None:
    hello = m.Hello(1, 9, TRANSFER, m.Role.DATA, 0, 5, bytes(16))
    assert Meeting(None, None).receive(encode(hello)) == hello


def test_what_does_not_decode() -> None:
    with pytest.raises(RemoteProtocolError, match="does not parse") as caught:
        Meeting().receive(b"\xff")
    assert code_of(caught) is Code.PROTOCOL


def test_a_proof_without_a_token_is_never_checked() -> None:
    meeting = Meeting(None, None)
    meeting.receive(*meeting.answer())

    with pytest.raises(LocalProtocolError):
        meeting.receiver.receive(encode(m.Proof(bytes(32))))


# --- what the sender refuses


@pytest.mark.parametrize(
    ("receiver_token", "sender_token", "says"),
    [(TOKEN, None, "requires a token"), (None, TOKEN, "requires none")],
)
def test_only_one_end_has_a_token(receiver_token: bytes | None, sender_token: bytes | None, says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=says) as caught:
        Meeting(receiver_token, sender_token).answer()
    assert code_of(caught) is Code.TOKEN


@pytest.mark.parametrize(("lowest", "highest", "fine"), [(1, 1, True), (1, 9, True), (2, 2, False), (2, 9, False)])
def test_versions(lowest: int, highest: int, fine: bool) -> None:
    meeting = Meeting(None, None)
    greeting = encode(m.Greeting(lowest, highest, INCARNATION, bytes(16), False))

    if fine:
        (hello,) = meeting.answer(greeting)
        assert decode(hello)[:2] == (limits.VERSION, limits.VERSION)
    else:
        spoken = str(lowest) if lowest == highest else f"{lowest} to {highest}"
        with pytest.raises(RemoteProtocolError, match=f"protocol version {spoken}, this sender 1") as caught:
            meeting.answer(greeting)
        assert code_of(caught) is Code.VERSION


def test_a_refusal_instead_of_greeting() -> None:
    with pytest.raises(Refused) as caught:
        Meeting().answer(encode(m.Refusal(Code.LIMIT, "full")))
    assert (caught.value.code, caught.value.reason) == (Code.LIMIT, "full")


def test_a_refusal_instead_of_welcome() -> None:
    meeting = Meeting()
    meeting.answer()

    with pytest.raises(Refused) as caught:
        meeting.sender.enter(encode(m.Refusal(Code.UNKNOWN_TRANSFER, "who?")))
    assert caught.value.code is Code.UNKNOWN_TRANSFER
    assert caught.value.retryable


@pytest.mark.parametrize("message", [m.Welcome(b""), m.Offer(8, None, False, 0), m.Abort(Code.SOURCE, "")])
def test_anything_instead_of_greeting(message: m.Message) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{type(message).__name__} instead of Greeting") as caught:
        Meeting().answer(encode(message))
    assert code_of(caught) is Code.PROTOCOL


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("message", [m.Proof(bytes(32)), m.Complete(True), m.Abort(Code.SOURCE, "")])
def test_anything_instead_of_welcome(message: m.Message, token: bytes | None) -> None:
    meeting = Meeting(token, token)
    meeting.answer()

    with pytest.raises(RemoteProtocolError, match=f"{type(message).__name__} instead of Welcome") as caught:
        meeting.sender.enter(encode(message))
    assert code_of(caught) is Code.PROTOCOL


def test_a_receiver_that_does_not_know_the_token() -> None:
    """It lets everybody who says anything in, and can't prove itself."""
    meeting = Meeting()
    _, proof = meeting.answer()
    echoed = decode(proof)
    assert isinstance(echoed, m.Proof)

    for mac in (b"", bytes(32), echoed.mac):  # the sender's own proof, echoed, is none of the receiver
        with pytest.raises(RemoteProtocolError, match="does not know the token") as caught:
            meeting.sender.enter(encode(m.Welcome(mac)))
        assert code_of(caught) is Code.TOKEN


def test_a_welcome_of_another_connection() -> None:
    one, two = Meeting(), Meeting()
    one.receive(*one.answer())
    two.receive(*two.answer())

    with pytest.raises(RemoteProtocolError, match="does not know the token"):
        one.sender.enter(encode(two.receiver.welcome()))


# --- features


NAMED = [(), ("trees",), ("a", "trees", "z-9"), tuple(f"{number:02}" for number in range(limits.FEATURES_MAX))]


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("theirs", NAMED)
@pytest.mark.parametrize("ours", NAMED)
def test_each_end_hears_what_the_other_one_names(
    ours: tuple[str, ...], theirs: tuple[str, ...], token: bytes | None
) -> None:
    """Names of later versions, too."""
    receiver = ReceiverOpening(INCARNATION, some(token), features=theirs)
    sender = SenderOpening(token, features=ours)
    bodies = sender.answer(receiver.greeting_body, TRANSFER, m.Role.CONTROL, 0, 5)
    hello = [receiver.receive(body) for body in bodies][-1]
    sender.enter(encode(receiver.welcome()))

    assert hello is not None
    assert sender.peer_features == theirs
    assert receiver.peer_features == hello.features == ours
    assert max(map(len, (receiver.greeting_body, *bodies))) <= limits.OPENING_FRAME_BYTES


def without(body: bytes, name: str) -> bytes:
    """Take a feature out of a Greeting or a Hello, as somebody on the way would."""
    message = decode(body)
    assert isinstance(message, m.Greeting | m.Hello)
    return encode(message._replace(features=tuple(each for each in message.features if each != name)))


def test_a_feature_that_is_taken_out_of_the_greeting() -> None:
    """With a token: the sender would do without it, but proves another Greeting than the receiver's."""
    meeting = Meeting()
    answer = meeting.answer(without(meeting.receiver.greeting_body, features.SHARDS))
    assert features.SHARDS not in meeting.sender.peer_features

    with pytest.raises(RemoteProtocolError, match="the token is wrong") as caught:
        meeting.receive(*answer)
    assert code_of(caught) is Code.TOKEN


def test_a_feature_that_is_taken_out_of_the_hello() -> None:
    meeting = Meeting()
    hello, proof = meeting.answer()

    with pytest.raises(RemoteProtocolError, match="the token is wrong") as caught:
        meeting.receive(without(hello, features.TREES), proof)
    assert code_of(caught) is Code.TOKEN


def test_without_a_token_nobody_notices_that_a_feature_is_taken_out() -> None:
    """What "Security" says: then TLS alone protects the opening."""
    meeting = Meeting(None, None)
    (hello,) = meeting.answer(without(meeting.receiver.greeting_body, features.SHARDS))
    let_in = meeting.receive(without(hello, features.TREES))
    meeting.sender.enter(encode(meeting.receiver.welcome()))

    assert let_in is not None
    assert features.TREES not in let_in.features
    assert features.SHARDS not in meeting.sender.peer_features


# --- the user's own token


def meet(receiver_token: bytes | None, own: bytes | None) -> tuple[ReceiverOpening, SenderOpening]:
    """Return both ends, of which the sender was given no token, and found `own` as its user's own."""
    return ReceiverOpening(INCARNATION, some(receiver_token)), SenderOpening(own, is_own=own is not None)


def test_the_own_token_is_used_where_one_is_asked_for() -> None:
    receiver, sender = meet(TOKEN, TOKEN)
    hello, proof = sender.answer(receiver.greeting_body, TRANSFER, m.Role.CONTROL, 0, 5)
    assert receiver.receive(hello) is None
    assert receiver.receive(proof) is not None
    sender.enter(encode(receiver.welcome()))
    assert sender.token == TOKEN


def test_the_own_token_does_not_count_where_none_is_asked_for() -> None:
    receiver, sender = meet(None, TOKEN)
    (hello,) = sender.answer(receiver.greeting_body, TRANSFER, m.Role.CONTROL, 0, 5)
    assert receiver.receive(hello) is not None
    sender.enter(encode(receiver.welcome()))
    assert sender.token is None


def test_without_an_own_token_the_error_says_what_to_pass() -> None:
    receiver, sender = meet(TOKEN, None)
    with pytest.raises(
        RemoteProtocolError, match="requires a token: pass --token-file or FILESTREAMER_TOKEN"
    ) as caught:
        sender.answer(receiver.greeting_body, TRANSFER, m.Role.CONTROL, 0, 5)
    assert code_of(caught) is Code.TOKEN


def test_a_receiver_of_another_user_says_what_to_pass() -> None:
    receiver, sender = meet(TOKEN, TOKEN + b"?")
    hello, proof = sender.answer(receiver.greeting_body, TRANSFER, m.Role.CONTROL, 0, 5)
    receiver.receive(hello)
    with pytest.raises(RemoteProtocolError) as refusal:
        receiver.receive(proof)
    with pytest.raises(RemoteProtocolError, match="than this user's own: pass --token-file") as caught:
        sender.enter(encode(m.Refusal(refusal.value.code, refusal.value.reason)))
    assert code_of(caught) is Code.TOKEN


def test_a_receiver_that_only_pretends_to_know_the_own_token() -> None:
    """A program that listens where the user's receiver is expected gets no file."""
    receiver, sender = meet(TOKEN, TOKEN)
    sender.answer(receiver.greeting_body, TRANSFER, m.Role.CONTROL, 0, 5)
    with pytest.raises(RemoteProtocolError, match="does not know the token"):
        sender.enter(encode(m.Welcome(bytes(32))))


# --- inside TLS


def test_inside_tls() -> None:
    meeting = Meeting(receiver_certificate=b"c" * 32, sender_certificate=b"c" * 32)
    meeting.receive(*meeting.answer())
    meeting.sender.enter(encode(meeting.receiver.welcome()))


@pytest.mark.parametrize(("receiver", "sender"), [(b"c" * 32, b"d" * 32), (b"c" * 32, b""), (b"", b"d" * 32)])
def test_a_man_in_the_middle_with_a_certificate_of_his_own(receiver: bytes, sender: bytes) -> None:
    meeting = Meeting(receiver_certificate=receiver, sender_certificate=sender)

    with pytest.raises(RemoteProtocolError, match="the token is wrong"):
        meeting.receive(*meeting.answer())


# --- jobs


def meeting_of(receiver: str, sender: str, token: bytes | None = TOKEN) -> Meeting:
    meeting = Meeting(token, token)
    meeting.receiver = ReceiverOpening(INCARNATION, some(token), job=receiver)
    meeting.sender = SenderOpening(token, job=sender)
    return meeting


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize(("receiver", "sender"), [("photos", "photos"), ("", "photos"), ("", "")])
def test_ends_of_one_job(receiver: str, sender: str, token: bytes | None) -> None:
    """A receiver without a job takes senders of any, and says of which one it takes them."""
    meeting = meeting_of(receiver, sender, token)
    hello = meeting.receive(*meeting.answer())
    assert hello is not None
    assert hello.job == sender
    welcome = meeting.receiver.welcome()
    assert welcome.job == sender
    meeting.sender.enter(encode(welcome))
    assert meeting.sender.awaits_welcome == bool(token or sender)


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("sender", ["mails", "photo", ""])
def test_a_receiver_takes_no_other_job(sender: str, token: bytes | None) -> None:
    meeting = meeting_of("photos", sender, token)
    with pytest.raises(RemoteProtocolError, match="'photos'") as caught:
        meeting.receive(*meeting.answer())
    assert code_of(caught) is Code.JOB


def test_the_job_is_compared_after_the_proof() -> None:
    """A stranger does not learn of which job a receiver is."""
    meeting = meeting_of("photos", "mails")
    meeting.sender = SenderOpening(b"another token of many characters", job="mails")
    with pytest.raises(RemoteProtocolError) as caught:
        meeting.receive(*meeting.answer())
    assert code_of(caught) is Code.TOKEN


@pytest.mark.parametrize("other", ["mails", ""])
def test_a_sender_goes_on_only_with_its_own_job(other: str) -> None:
    """An older receiver does not repeat the job."""
    meeting = meeting_of("photos", "photos")
    meeting.receive(*meeting.answer())
    with pytest.raises(RemoteProtocolError, match="'photos'") as caught:
        meeting.sender.enter(encode(meeting.receiver.welcome()._replace(job=other)))
    assert code_of(caught) is Code.JOB


def test_a_job_can_not_be_changed_on_the_way() -> None:
    meeting = meeting_of("photos", "mails")
    hello_body, proof = meeting.answer()
    hello = decode(hello_body)
    assert isinstance(hello, m.Hello)
    with pytest.raises(RemoteProtocolError) as caught:
        meeting.receive(encode(hello._replace(job="photos")), proof)
    assert code_of(caught) is Code.TOKEN
