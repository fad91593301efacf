"""The opening of a connection, for each end: Greeting, Hello, Proof, Welcome (proto/README.md, "Opening").

Pure: frame bodies in, frame bodies out. If the peer breaks the protocol, a RemoteProtocolError has the code for the
receiver's Refusal. If the receiver has sent a Refusal, Refused has its code and reason.
"""

import os
from collections.abc import Callable

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import Code, LocalProtocolError, Refused, RemoteProtocolError
from filestreamer.wire.features import KNOWN


def random_id() -> bytes:
    """Make a transfer_id, an incarnation or a nonce: 16 random bytes."""
    return os.urandom(limits.ID_BYTES)


class ReceiverOpening:
    """The receiver's end: send `greeting_body`, pass each body to `receive` until it returns Hello, send `welcome()`.

    `token` is None where none is required. `certificate_sha256` is that of this receiver's TLS certificate, if any.
    `features` are the names that the Greeting lists, sorted. `earlier` returns the token with which the transfer of an
    id was let in, if it was: the token may have been renewed since, and the transfer goes on.
    """

    def __init__(
        self,
        incarnation: bytes,
        token: bytes | None,
        certificate_sha256: bytes = b"",
        features: tuple[str, ...] = KNOWN,
        earlier: Callable[[bytes], bytes | None] | None = None,
    ) -> None:
        self.token = token
        """The token that the sender has to prove; after its proof, the one that it has proved."""
        self._earlier = earlier
        self._certificate = certificate_sha256
        greeting = m.Greeting(limits.VERSION, limits.VERSION, incarnation, random_id(), token is not None, features)
        self.greeting_body = encode(greeting)
        self._hello_body = b""
        self._hello: m.Hello | None = None
        self._proof = b""
        self.peer_features: tuple[str, ...] = ()
        """The features in the sender's Hello, once it was received."""

    def receive(self, body: bytes) -> m.Hello | None:
        """Take a body from the sender; return its Hello when the connection is accepted, None while Proof is awaited.

        Raises RemoteProtocolError: PROTOCOL, VERSION, TOKEN.
        """
        message = decode(body)
        if self._hello is None:
            return self._receive_hello(message, body)
        if not isinstance(message, m.Proof):
            raise RemoteProtocolError(
                "this receiver requires a token: pass the sender --token-file or FILESTREAMER_TOKEN", Code.TOKEN
            )
        return self._receive_proof(message)

    def _receive_hello(self, message: m.Message, body: bytes) -> m.Hello | None:
        if not isinstance(message, m.Hello):
            raise RemoteProtocolError(f"{type(message).__name__} before Hello")
        if message.version != limits.VERSION:
            spoken = f"this receiver speaks protocol version {limits.VERSION}, the sender {message.version}"
            raise RemoteProtocolError(f"{spoken}: update the older one", Code.VERSION)
        self._hello, self._hello_body, self.peer_features = message, body, message.features
        return message if self.token is None else None

    def _receive_proof(self, message: m.Proof) -> m.Hello:
        from filestreamer.wire import auth

        if self.token is None or self._hello is None:
            raise LocalProtocolError("a Proof was checked without a token")
        earlier = self._earlier(self._hello.transfer_id) if self._earlier is not None else None
        # As long for every transfer, so that a wrong proof does not tell which ones are under way.
        for token in (self.token, earlier or self.token):
            expected = auth.sender_proof(token, self.greeting_body, self._hello_body, self._certificate)
            if auth.equal(message.mac, expected):
                self.token, self._proof = token, message.mac
                return self._hello
        raise RemoteProtocolError("the token is wrong", Code.TOKEN)

    def welcome(self) -> m.Welcome:
        """Make the Welcome; where a token is required, it proves that this receiver knows the token, too."""
        if self.token is None:
            return m.Welcome(b"")
        from filestreamer.wire import auth

        mac = auth.receiver_proof(self.token, self.greeting_body, self._hello_body, self._proof, self._certificate)
        return m.Welcome(mac)


class SenderOpening:
    """The sender's end: pass the first body to `answer`, send the bodies that it returns, pass the next one to `enter`.

    `own` reads the user's own token; it is called where no token was given and the receiver requires one.
    `features` are the names that the Hello lists, sorted.
    """

    def __init__(
        self,
        token: bytes | None,
        certificate_sha256: bytes = b"",
        own: Callable[[], bytes | None] | None = None,
        features: tuple[str, ...] = KNOWN,
    ) -> None:
        self.token = token
        """The token that is proved to the receiver; None where there is none."""
        self._own = own
        self._is_own = False
        self._certificate = certificate_sha256
        self._expected_mac = b""
        self._features = features
        self.incarnation = b""
        self.peer_features: tuple[str, ...] = ()
        """The features in the receiver's Greeting, once it was answered."""

    def answer(
        self, greeting_body: bytes, transfer_id: bytes, role: m.Role, connection_id: int, connections: int
    ) -> tuple[bytes, ...]:
        """Answer a Greeting; return the bodies to send: Hello and, where a token is required, Proof.

        Raises RemoteProtocolError (PROTOCOL, VERSION; TOKEN where only one of the two ends has a token), and Refused
        where the receiver has sent a Refusal instead of a Greeting.
        """
        greeting = decode(greeting_body)
        if isinstance(greeting, m.Refusal):
            raise Refused(greeting.code, greeting.reason)
        if not isinstance(greeting, m.Greeting):
            raise RemoteProtocolError(f"{type(greeting).__name__} instead of Greeting")
        self._check(greeting)
        self.incarnation, self.peer_features = greeting.incarnation, greeting.features
        nonce = random_id()
        hello = encode(m.Hello(limits.VERSION, transfer_id, role, connection_id, connections, nonce, self._features))
        if self.token is None:
            return (hello,)
        from filestreamer.wire import auth

        proof = auth.sender_proof(self.token, greeting_body, hello, self._certificate)
        self._expected_mac = auth.receiver_proof(self.token, greeting_body, hello, proof, self._certificate)
        return hello, encode(m.Proof(proof))

    def _check(self, greeting: m.Greeting) -> None:
        if not greeting.lowest_version <= limits.VERSION <= greeting.highest_version:
            spoken = f"{greeting.lowest_version} to {greeting.highest_version}"
            reason = (
                f"the receiver speaks protocol versions {spoken}, this sender {limits.VERSION}: update the older one"
            )
            raise RemoteProtocolError(reason, Code.VERSION)
        if greeting.token_required and self.token is None and self._own is not None:
            self.token = self._own()
            self._is_own = self.token is not None
        if greeting.token_required and self.token is None:
            reason = "the receiver requires a token: pass --token-file or FILESTREAMER_TOKEN"
            raise RemoteProtocolError(reason, Code.TOKEN)
        if not greeting.token_required and self.token is not None:
            reason = "a token was given, but the receiver requires none: check that --to is the receiver you mean"
            raise RemoteProtocolError(reason, Code.TOKEN)

    def enter(self, body: bytes) -> None:
        """Check the answer to Hello. Raises Refused, RemoteProtocolError (PROTOCOL; TOKEN where the proof is wrong)."""
        message = decode(body)
        if isinstance(message, m.Refusal):
            if message.code is Code.TOKEN and self._is_own:
                reason = "the receiver has another token than this user's own: pass --token-file or FILESTREAMER_TOKEN"
                raise RemoteProtocolError(reason, Code.TOKEN)
            raise Refused(message.code, message.reason)
        if not isinstance(message, m.Welcome):
            raise RemoteProtocolError(f"{type(message).__name__} instead of Welcome")
        if self.token is None:
            return
        from filestreamer.wire import auth

        if not auth.equal(message.mac, self._expected_mac):
            raise RemoteProtocolError("the receiver does not know the token", Code.TOKEN)
