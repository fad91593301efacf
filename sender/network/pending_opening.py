"""What is left of the opening of a connection after its Hello: Greeting, Proof, Welcome (proto/README.md, "Opening").

With a token, nothing else may be sent before the receiver has proved that it knows the token, too: `finish` waits for
that. Without one, more may follow Hello at once, and whoever reads the connection hands the first frames to `take`.
"""

import time

from filestreamer.credentials.tokens import Tokens
from filestreamer.wire import limits
from filestreamer.wire.errors import Code, ConnectionLost, Refused, RemoteProtocolError
from filestreamer.wire.framing import frame_of
from filestreamer.wire.opening import SenderOpening
from filestreamer.wire.sockets.transport import Channel, Deadline


class PendingOpening:
    """The opening of one connection on which Hello was said. For the thread that reads the connection."""

    def __init__(
        self, channel: Channel, opening: SenderOpening, tokens: Tokens, expected_incarnation: bytes | None = None
    ) -> None:
        """`expected_incarnation` is that of the receiver, where control has reached it already."""
        self.channel = channel
        self._opening = opening
        self._tokens = tokens
        self._expected_incarnation = expected_incarnation
        self._is_greeted = False
        self.is_over = False
        """Whether the receiver has welcomed the connection."""
        self._renew_deadline()

    @property
    def incarnation(self) -> bytes:
        """The incarnation of the receiver, once it has said Greeting."""
        return self._opening.incarnation

    @property
    def features(self) -> tuple[str, ...]:
        """The features of the receiver, once it has said Greeting."""
        return self._opening.peer_features

    @property
    def must_finish(self) -> bool:
        """Whether nothing may be sent before Welcome was checked: there is a token to prove, or a job to compare."""
        return self._opening.awaits_welcome

    def _renew_deadline(self) -> None:
        waits_for = "Welcome" if self._is_greeted else "Greeting"
        what = f"{self.channel.peer}: the receiver's {waits_for}"
        self.check = Deadline(limits.OPENING_SILENCE_SECONDS, what)

    def finish(self) -> None:
        """Read until the receiver has welcomed the connection. Raises as `take`, and ConnectionLost in time."""
        while not self.is_over:
            self.channel.patience = self.check
            self.take(self.channel.read_body(limits.OPENING_FRAME_BYTES))

    def take(self, body: bytes) -> None:
        """Take the next frame of the receiver; answer a Greeting that asks for a Proof.

        Raises ConnectionLost where another receiver answers than was expected, or where another token is to be tried;
        Refused, RemoteProtocolError, TransferFailed(POLICY).
        """
        if self._is_greeted:
            self._enter(body)
            return
        proof = self._opening.greet(body)
        if self._expected_incarnation not in (None, self._opening.incarnation):
            raise ConnectionLost(
                f"another receiver answers at {self.channel.peer}:"
                " it was restarted, or the name leads to several receivers"
            )
        self._is_greeted = True
        self._renew_deadline()
        if proof is not None:
            self.channel.send(frame_of(proof))

    def _enter(self, body: bytes) -> None:
        token = self._opening.token
        try:
            self._opening.enter(body)
        except (Refused, RemoteProtocolError) as error:
            if error.code is Code.TOKEN and token is not None and self._tokens.refuse(token):
                raise ConnectionLost(f"{self.channel.peer}: {error}; trying the one of before") from None
            raise
        if token is not None:
            self._tokens.accept(token)
        self.is_over = True
        self.channel.heard_at = time.monotonic()
