"""The progress of the control connection's opening; data connections wait for it, and use its address.

lost -> connected to an address -> welcomed by an incarnation of the receiver -> the offer is answered
"""

import threading

from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.sockets.addresses import Address


class ControlState:
    """The coordinator changes it; data connections wait. Any thread may ask."""

    def __init__(self, *, was_open: bool = False) -> None:
        """Begin without a control connection; `was_open` continues that of an earlier transfer."""
        self.was_open = was_open
        """Whether data connections were ever allowed to dial."""
        self._changed = threading.Condition()  # protects the fields below
        self._address: Address | None = None
        self._incarnation: bytes | None = None
        self._is_answered = False
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether data connections may dial."""
        return self._address is not None

    # --- the coordinator

    def connected(self, address: Address) -> None:
        """Let data connections connect to an address to which control is connected."""
        self._change(address, None, is_answered=False)

    def welcomed(self, address: Address, incarnation: bytes) -> None:
        """Let data connections that are connected there say Hello: the receiver has welcomed control."""
        self._change(address, incarnation, is_answered=False)

    def answered(self, address: Address, incarnation: bytes) -> None:
        """Let data connections move chunks: the receiver has answered what control offered."""
        self._change(address, incarnation, is_answered=True)

    def lost(self) -> None:
        """Let no data connection dial: control is not connected."""
        self._change(None, None, is_answered=False)

    def _change(self, address: Address | None, incarnation: bytes | None, *, is_answered: bool) -> None:
        with self._changed:
            self._address, self._incarnation, self._is_answered = address, incarnation, is_answered
            self.was_open = self.was_open or address is not None
            self._changed.notify_all()

    def close(self) -> None:
        """Have each `wait_...` raise ConnectionLost from now on: the transfer is over."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    # --- the data connections; each of these raises ConnectionLost where the transfer is over

    def wait_for_address(self) -> Address:
        """Wait until data connections may dial; return the address."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._address is not None)
            self._check()
            assert self._address is not None
            return self._address

    def wait_for_incarnation(self, address: Address) -> bytes | None:
        """Wait until the receiver at `address` has welcomed control.

        Return the incarnation of the receiver; None where control was lost meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._address != address or self._incarnation is not None)
            self._check()
            return self._incarnation if self._address == address else None

    def wait_until_answered(self, address: Address, incarnation: bytes | None = None) -> bool:
        """Wait until the receiver at `address` has answered the offer; return False where control was lost meanwhile.

        With `incarnation`, it has to be this one: control counts as lost where another one has welcomed it.
        """

        def is_lost() -> bool:
            return self._address != address or incarnation not in (None, self._incarnation)

        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or is_lost() or self._is_answered)
            self._check()
            return not is_lost()

    def _check(self) -> None:
        if self._is_closed:
            raise ConnectionLost("the transfer is over")
