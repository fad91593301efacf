"""The opening where the receiver dials, for each end: Greeting, Hello, Welcome, Proof (proto/README.md, "Opening").

The end that was dialled, the sender, proves last: whoever connects to it learns nothing by which he could try tokens.
Pure: frame bodies in, frame bodies out. If the peer breaks the protocol, a RemoteProtocolError has the code for the
Refusal. If the peer has sent a Refusal, Refused has its code and reason.
"""

from collections.abc import Callable
from typing import NamedTuple

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import Code, LocalProtocolError, Refused, RemoteProtocolError
from filestreamer.wire.features import KNOWN, require
from filestreamer.wire.job_name import check_receiver, check_sender
from filestreamer.wire.opening import check_needs, check_version, random_id
from filestreamer.wire.session import Side


class Joined(NamedTuple):
    """What a connection that a receiver has dialled belongs to: what Hello says of that."""

    transfer_id: bytes
    connection_id: int
    connections: int
    """Upper bound of the data connections of the transfer."""
    needs: tuple[str, ...] = ()
    """The features without which the transfer can't be moved."""
    job: str = ""
    """The job that the transfer is of: the receiver has to be of the same."""


class DialledSenderOpening:
    """The sender's end: pass each body to `take`, send what it returns, until `is_over`.

    `token` is None where none is required. `certificate_sha256` is the digest of this sender's TLS certificate, if any.
    `join` returns what a connection belongs to, given its Greeting, which is not proved; it may raise
    TransferFailed (UNKNOWN_TRANSFER, LIMIT, BUSY, SHUTTING_DOWN). `earlier` returns the token with which the receiver
    of an incarnation was let in, if it was: the token may have been renewed since, and its transfer goes on.
    """

    side: Side = "sender"
    first_body = b""
    """What this end says before it has heard anything: nothing."""

    def __init__(
        self,
        token: bytes | None,
        certificate_sha256: bytes = b"",
        *,
        join: Callable[[m.Greeting], Joined],
        features: tuple[str, ...] = KNOWN,
        earlier: Callable[[bytes], bytes | None] | None = None,
    ) -> None:
        self.token = token
        """The token that the receiver has to prove; after its proof, the one that it has proved."""
        self._certificate_sha256 = certificate_sha256
        self._join = join
        self._features = features
        self._earlier = earlier
        self._greeting_body = b""
        self.greeting: m.Greeting | None = None
        """The receiver's Greeting, once it was received; what it says is not proved before `is_over`."""
        self._hello_body = b""
        self.hello: m.Hello | None = None
        """This sender's Hello, once it is made."""
        self.is_over = False
        """Whether the receiver has welcomed the connection, and has proved the token where there is one."""

    @property
    def has_heard(self) -> bool:
        """Whether all of the Greeting was received."""
        return self.greeting is not None

    @property
    def awaits(self) -> str:
        """The message that this end waits for."""
        return "Welcome" if self.has_heard else "Greeting"

    def take(self, body: bytes) -> bytes | None:
        """Take a body from the receiver; return the one to send: Hello, then Proof where a token is required.

        Raises RemoteProtocolError (PROTOCOL, VERSION, TOKEN, JOB), TransferFailed (POLICY where the receiver lacks a
        feature that the transfer needs, and what `join` raises), Refused where the receiver has sent a Refusal.
        """
        message = decode(body)
        if isinstance(message, m.Refusal):
            raise Refused(message.code, message.reason)
        if self.greeting is None:
            return self._take_greeting(message, body)
        if not isinstance(message, m.Welcome):
            raise RemoteProtocolError(f"{type(message).__name__} instead of Welcome")
        return self._take_welcome(self.greeting, message)

    def _take_greeting(self, message: m.Message, body: bytes) -> bytes:
        if isinstance(message, m.Hello):
            raise RemoteProtocolError(
                "both ends send: this sender waits for receivers, which connect with `receiver --connect`"
            )
        if not isinstance(message, m.Greeting):
            raise RemoteProtocolError(f"{type(message).__name__} before Greeting")
        if message.role is None:
            raise RemoteProtocolError("Greeting.role is missing, where the receiver has dialled")
        check_version(message, "this sender speaks protocol version {ours}, the receiver {theirs}")
        if self.token is not None and not message.token_required:
            reason = "this sender requires a token: pass the receiver --token-file or FILESTREAMER_TOKEN"
            raise RemoteProtocolError(reason, Code.TOKEN)
        if self.token is None and message.token_required:
            reason = "the receiver has a token, and this sender has none: pass the sender --token-file or"
            raise RemoteProtocolError(f"{reason} FILESTREAMER_TOKEN", Code.TOKEN)
        joined = self._join(message)
        require(message.features, *joined.needs)
        self.greeting, self._greeting_body = message, body
        self.hello = m.Hello(
            limits.VERSION,
            limits.VERSION,
            joined.transfer_id,
            message.role,
            joined.connection_id,
            joined.connections,
            random_id(),
            self.token is not None,
            self._features,
            joined.needs,
            joined.job,
        )
        self._hello_body = encode(self.hello)
        return self._hello_body

    def _take_welcome(self, greeting: m.Greeting, message: m.Welcome) -> bytes | None:
        if self.is_over:
            raise LocalProtocolError("a Welcome was checked twice")
        assert self.hello is not None  # the Greeting was taken
        if self.token is None:
            check_receiver(self.hello.job, message.job)
            self.is_over = True
            return None
        from filestreamer.wire import auth

        earlier = self._earlier(greeting.incarnation) if self._earlier is not None else None
        transcript = auth.Transcript(self._greeting_body, self._hello_body, self._certificate_sha256, "sender")
        # As long for every receiver, so that a wrong proof does not tell which ones have a transfer under way.
        for token in (self.token, earlier or self.token):
            if auth.equal(message.mac, transcript.receiver_proof(token)):
                check_receiver(self.hello.job, message.job)
                self.token, self.is_over = token, True
                return encode(m.Proof(transcript.sender_proof(token, message.mac)))
        raise RemoteProtocolError("the token is wrong", Code.TOKEN)


class DiallingReceiverOpening:
    """The receiver's end: send `greeting_body`; pass the next body to `answer`, send the Welcome that it returns.

    If `awaits_proof`, pass the body after that to `enter`. `token` is None where there is none; if `is_own`, it is the
    user's own token. `certificate_sha256` is the digest of the sender's TLS certificate, if any. `features` are the
    names that the Greeting lists, sorted. `job` is the one of which the sender has to be; empty where it may be of any.
    """

    def __init__(
        self,
        incarnation: bytes,
        role: m.Role,
        token: bytes | None,
        certificate_sha256: bytes = b"",
        *,
        is_own: bool = False,
        features: tuple[str, ...] = KNOWN,
        job: str = "",
    ) -> None:
        self.token = token
        self._is_own = is_own
        self._job = job
        self._role = role
        self._certificate_sha256 = certificate_sha256
        self._features = features
        greeting = m.Greeting(
            limits.VERSION, limits.VERSION, incarnation, random_id(), token is not None, features, role
        )
        self.greeting_body = encode(greeting)
        self.hello: m.Hello | None = None
        """The sender's Hello, once it was received; what it says is not proved before the Proof was taken."""
        self._expected_mac = b""

    @property
    def awaits_proof(self) -> bool:
        """Whether the opening ends with the sender's Proof; else it does with Welcome."""
        return self.token is not None

    def answer(self, body: bytes) -> bytes:
        """Take the Hello; return the body of Welcome, which proves the token where there is one.

        Raises RemoteProtocolError (PROTOCOL, VERSION, POLICY; TOKEN where only this end has a token; JOB where there is
        none), Refused where the sender has sent a Refusal.
        """
        message = decode(body)
        self._look_for_refusal(message)
        if isinstance(message, m.Greeting):
            raise RemoteProtocolError("both ends receive: this receiver connects to a sender, one with --listen")
        if not isinstance(message, m.Hello):
            raise RemoteProtocolError(f"{type(message).__name__} instead of Hello")
        self._check(message)
        if self.token is None:
            job = check_sender(self._job, message.job)
            self.hello = message
            return encode(m.Welcome(b"", job))
        self.hello = message
        from filestreamer.wire import auth

        transcript = auth.Transcript(self.greeting_body, body, self._certificate_sha256, "sender")
        proof = transcript.receiver_proof(self.token)
        self._expected_mac = transcript.sender_proof(self.token, proof)
        # The sender compares its own with that, now; this end compares when the sender's proof is here.
        return encode(m.Welcome(proof, self._job or message.job))

    def enter(self, body: bytes) -> None:
        """Check the Proof. Raises RemoteProtocolError (TOKEN, JOB), Refused where the sender has sent a Refusal."""
        message = decode(body)
        self._look_for_refusal(message)
        if not isinstance(message, m.Proof):
            raise RemoteProtocolError(f"{type(message).__name__} instead of Proof", Code.TOKEN)
        from filestreamer.wire import auth

        if not self._expected_mac or not auth.equal(message.mac, self._expected_mac):
            raise RemoteProtocolError("the sender does not know the token", Code.TOKEN)
        assert self.hello is not None  # it was answered
        check_sender(self._job, self.hello.job)

    def _look_for_refusal(self, message: m.Message) -> None:
        if not isinstance(message, m.Refusal):
            return
        if message.code is Code.TOKEN and self._is_own and self.token is not None:
            reason = "the sender has another token than this user's own: pass --token-file or FILESTREAMER_TOKEN"
            raise RemoteProtocolError(reason, Code.TOKEN)
        raise Refused(message.code, message.reason, "sender")

    def _check(self, hello: m.Hello) -> None:
        check_version(hello, "the sender speaks protocol version {theirs}, this receiver {ours}")
        if hello.role is not self._role:
            raise RemoteProtocolError(f"Hello.role is {hello.role.name}, but Greeting.role is {self._role.name}")
        if self.token is not None and not hello.can_prove:
            reason = "the receiver has a token, and the sender has none: check that --connect is the sender you mean"
            raise RemoteProtocolError(reason, Code.TOKEN)
        check_needs(hello, self._features)
