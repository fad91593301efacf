"""The opening where the sender dials, for each end: Hello, Greeting, Proof, Welcome (proto/README.md, "Opening").

Hello and Greeting cross: neither end waits for the other's before it sends its own. Pure: frame bodies in, frame bodies
out. If the peer breaks the protocol, a RemoteProtocolError has the code for the receiver's Refusal. If the receiver has
sent a Refusal, Refused has its code and reason. `filestreamer.wire.receiver_dials` has the other opening.
"""

import os
from collections.abc import Callable, Collection, Mapping

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import Code, LocalProtocolError, Refused, RemoteProtocolError
from filestreamer.wire.features import KNOWN, require
from filestreamer.wire.job_name import check_receiver, check_sender
from filestreamer.wire.session import Side


def random_id() -> bytes:
    """Make a transfer_id, an incarnation or a nonce: 16 random bytes."""
    return os.urandom(limits.ID_BYTES)


class ReceiverOpening:
    """The receiver's end: send `greeting_body`, pass each body to `receive` until it returns Hello, send `welcome()`.

    The sender has to prove one of `tokens`; None where none is required. `certificate_sha256` is the digest of this
    receiver's TLS certificate, if any. `features` are the names that the Greeting lists, sorted. `job` is the one of
    which senders have to be; empty where they may be of any.
    `earlier` returns the tokens with which transfers that are under way were let in, each with the ids of these: a
    token may have been renewed since, and its transfers go on.
    """

    side: Side = "receiver"

    def __init__(
        self,
        incarnation: bytes,
        tokens: Collection[bytes] | None,
        certificate_sha256: bytes = b"",
        *,
        features: tuple[str, ...] = KNOWN,
        earlier: Callable[[], Mapping[bytes, Collection[bytes]]] = dict,
        job: str = "",
    ) -> None:
        self._tokens = tokens
        self.token: bytes | None = None
        """The token that the sender has proved, once it has."""
        self._job = job
        self._earlier = earlier
        self._features = features
        self._certificate_sha256 = certificate_sha256
        greeting = m.Greeting(limits.VERSION, limits.VERSION, incarnation, random_id(), tokens is not None, features)
        self.greeting_body = self.first_body = encode(greeting)
        self.is_over = False
        """Whether the connection is accepted."""
        self._hello_body = b""
        self.hello: m.Hello | None = None
        """The sender's Hello, once it was received; what it says is not proved before `receive` returns it."""
        self._proof = b""
        self.peer_features: tuple[str, ...] = ()
        """The features in the sender's Hello, once it was received."""

    def receive(self, body: bytes) -> m.Hello | None:
        """Take a body from the sender; return its Hello when the connection is accepted, None while Proof is awaited.

        Raises RemoteProtocolError: PROTOCOL, VERSION, TOKEN, POLICY, JOB.
        """
        message = decode(body)
        if self.hello is None:
            hello = self._receive_hello(message, body)
        elif not isinstance(message, m.Proof):
            raise RemoteProtocolError(f"{type(message).__name__} instead of Proof", Code.TOKEN)
        else:
            hello = self._receive_proof(self.hello, message)
        if hello is not None:
            self._job = check_sender(self._job, hello.job)
        return hello

    def take(self, body: bytes) -> None:
        """Take a body from the sender, as `receive`; nothing answers it before the transfer has said Welcome."""
        self.is_over = self.receive(body) is not None

    @property
    def has_heard(self) -> bool:
        """Whether all of Hello is here, so that only the Proof may be missing."""
        return self.hello is not None

    @property
    def awaits(self) -> str:
        """The name of the frame that is to come next."""
        return "Proof" if self.has_heard else "Hello"

    def _receive_hello(self, message: m.Message, body: bytes) -> m.Hello | None:
        if isinstance(message, m.Greeting):
            raise RemoteProtocolError("both ends receive: senders connect to this receiver, with `sender --to`")
        if not isinstance(message, m.Hello):
            raise RemoteProtocolError(f"{type(message).__name__} before Hello")
        check_version(message, "this receiver speaks protocol version {ours}, the sender {theirs}")
        if self._tokens is not None and not message.can_prove:
            reason = "this receiver requires a token: pass the sender --token-file or FILESTREAMER_TOKEN"
            raise RemoteProtocolError(reason, Code.TOKEN)
        check_needs(message, self._features)
        self.hello, self._hello_body, self.peer_features = message, body, message.features
        return message if self._tokens is None else None

    def _receive_proof(self, hello: m.Hello, message: m.Proof) -> m.Hello:
        from filestreamer.wire import auth

        if self._tokens is None:
            raise LocalProtocolError("a Proof was checked without a token")
        transcript = auth.Transcript(self.greeting_body, self._hello_body, self._certificate_sha256)
        # Each token is tried, whichever is right and whatever Hello says: how long that takes tells nobody whose token
        # it is, and which transfers are under way.
        for token in self._tokens:
            if auth.equal(message.mac, transcript.sender_proof(token)):
                self.token = token
        for token, transfer_ids in self._earlier().items():
            is_right = auth.equal(message.mac, transcript.sender_proof(token))
            if is_right and hello.transfer_id in transfer_ids:
                self.token = token
        if self.token is None:
            raise RemoteProtocolError("the token is wrong", Code.TOKEN)
        self._proof = message.mac
        return hello

    def welcome(self) -> m.Welcome:
        """Make the Welcome; where a token is required, it proves that this receiver knows the sender's, too."""
        if self.token is None:
            return m.Welcome(b"", self._job)
        from filestreamer.wire import auth

        transcript = auth.Transcript(self.greeting_body, self._hello_body, self._certificate_sha256)
        return m.Welcome(transcript.receiver_proof(self.token, self._proof), self._job)


class SenderOpening:
    """The sender's end: send `hello(...)`; pass the first body to `greet`, send the Proof, pass the next to `enter`.

    `token` is None where there is none. If `is_own`, it is the user's own token, which counts only where the receiver
    requires a token, or where it `vouches` for the receiver's certificate. `certificate_sha256` is the digest of the
    receiver's TLS certificate, if any. `features` are the names that the Hello lists, sorted, and `needs` those of them
    without which the transfer can't be moved. `job` is the one that the transfer is of, if any: the receiver has to be
    of the same.
    """

    def __init__(
        self,
        token: bytes | None,
        certificate_sha256: bytes = b"",
        *,
        is_own: bool = False,
        vouches: bool = False,
        features: tuple[str, ...] = KNOWN,
        needs: tuple[str, ...] = (),
        job: str = "",
    ) -> None:
        self.token = token
        """The token that is proved to the receiver; None where there is none, or none is required."""
        self._is_own = is_own
        self._vouches = vouches
        self._certificate_sha256 = certificate_sha256
        self._features = features
        self._needs = needs
        self._job = job
        self._hello_body = b""
        self._expected_mac = b""
        self.incarnation = b""
        """The receiver's incarnation, once it has said Greeting."""
        self.peer_features: tuple[str, ...] = ()
        """The features in the receiver's Greeting."""

    def hello(self, transfer_id: bytes, role: m.Role, connection_id: int, connections: int) -> bytes:
        """Make the body of Hello. It need not wait for the Greeting."""
        hello = m.Hello(
            limits.VERSION,
            limits.VERSION,
            transfer_id,
            role,
            connection_id,
            connections,
            random_id(),
            self.token is not None,
            self._features,
            self._needs,
            self._job,
        )
        self._hello_body = encode(hello)
        return self._hello_body

    def greet(self, greeting_body: bytes) -> bytes | None:
        """Take the Greeting; return the body of Proof, None where no token is required.

        Raises RemoteProtocolError (PROTOCOL, VERSION; TOKEN where only one of the two ends has a token), TransferFailed
        (POLICY) where the receiver lacks a feature that the transfer needs, and Refused where the receiver has sent a
        Refusal instead of a Greeting.
        """
        greeting = decode(greeting_body)
        if isinstance(greeting, m.Refusal):
            raise Refused(greeting.code, greeting.reason)
        if not isinstance(greeting, m.Greeting):
            raise RemoteProtocolError(f"{type(greeting).__name__} instead of Greeting")
        self._check(greeting)
        self.incarnation, self.peer_features = greeting.incarnation, greeting.features
        require(greeting.features, *self._needs)
        if self.token is None:
            return None
        from filestreamer.wire import auth

        transcript = auth.Transcript(greeting_body, self._hello_body, self._certificate_sha256)
        proof = transcript.sender_proof(self.token)
        self._expected_mac = transcript.receiver_proof(self.token, proof)
        return encode(m.Proof(proof))

    def answer(
        self, greeting_body: bytes, transfer_id: bytes, role: m.Role, connection_id: int, connections: int
    ) -> tuple[bytes, ...]:
        """Return the bodies to send where the Greeting is here already: Hello and, if one is required, Proof.

        Raises as `greet`.
        """
        hello = self.hello(transfer_id, role, connection_id, connections)
        proof = self.greet(greeting_body)
        return (hello,) if proof is None else (hello, proof)

    def _check(self, greeting: m.Greeting) -> None:
        # Else somebody in between could connect this sender to a receiver that dials as well.
        if greeting.role is not None:
            raise RemoteProtocolError("Greeting.role is not for a receiver that was dialled")
        check_version(greeting, "the receiver speaks protocol version {theirs}, this sender {ours}")
        if greeting.token_required and self.token is None:
            reason = "the receiver requires a token: pass --token-file or FILESTREAMER_TOKEN"
            raise RemoteProtocolError(reason, Code.TOKEN)
        if not greeting.token_required and self._is_own and self._vouches:
            reason = (
                "the receiver requires no token, so that this user's own does not vouch for its certificate: pass"
                " --tls-ca, or --tls-pin with the SHA-256 that the receiver's log says"
            )
            raise RemoteProtocolError(reason, Code.TOKEN)
        if not greeting.token_required and self._is_own:
            self.token = None
        elif not greeting.token_required and self.token is not None:
            reason = "a token was given, but the receiver requires none: check that --to is the receiver you mean"
            raise RemoteProtocolError(reason, Code.TOKEN)

    @property
    def awaits_welcome(self) -> bool:
        """Whether nothing may be sent before Welcome was checked: there is a token to prove, or a job to compare."""
        return self.token is not None or bool(self._job)

    def enter(self, body: bytes) -> None:
        """Check the answer to Hello.

        Raises Refused, RemoteProtocolError (PROTOCOL; TOKEN where the proof is wrong; JOB).
        """
        message = decode(body)
        if isinstance(message, m.Refusal):
            if message.code is Code.TOKEN and self._is_own and self.token is not None:
                reason = "the receiver has another token than this user's own: pass --token-file or FILESTREAMER_TOKEN"
                raise RemoteProtocolError(reason, Code.TOKEN)
            raise Refused(message.code, message.reason)
        if not isinstance(message, m.Welcome):
            raise RemoteProtocolError(f"{type(message).__name__} instead of Welcome")
        if self.token is not None:
            from filestreamer.wire import auth

            if not auth.equal(message.mac, self._expected_mac):
                raise RemoteProtocolError("the receiver does not know the token", Code.TOKEN)
        check_receiver(self._job, message.job)


def check_version(message: m.Greeting | m.Hello, spoken: str) -> None:
    """Raise RemoteProtocolError(VERSION) where the peer speaks no version of this end.

    `spoken` says who speaks what: its `{ours}` and `{theirs}` are replaced by the versions.
    """
    lowest, highest = message.lowest_version, message.highest_version
    if not lowest <= limits.VERSION <= highest:
        theirs = str(lowest) if lowest == highest else f"{lowest} to {highest}"
        said = spoken.format(ours=limits.VERSION, theirs=theirs)
        raise RemoteProtocolError(f"{said}: update the older one", Code.VERSION)


def check_needs(hello: m.Hello, known: tuple[str, ...]) -> None:
    """Raise RemoteProtocolError(POLICY) where a transfer needs a feature that this receiver does not know."""
    if lacking := [name for name in hello.needs if name not in known]:
        reason = f"this receiver does not know the feature '{lacking[0]}', which the transfer needs: upgrade it"
        raise RemoteProtocolError(reason, Code.POLICY)
