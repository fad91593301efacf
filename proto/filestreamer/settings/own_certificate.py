"""Tells the log when the certificate that this side shows is one that its peers will not accept."""

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from filestreamer.wire.session import Side

if TYPE_CHECKING:
    from filestreamer.wire.sockets.certificate import Facts


class OwnCertificate:
    """Looks at this side's certificate whenever it is used: it may be renewed, and it may expire. For any thread."""

    def __init__(self, side: Side, path: str, log: Any, peers: str) -> None:
        """`side` is "receiver" for a TLS server, "sender" for a client; `path` is the file of --tls-cert.

        `peers` names those that may check the certificate.
        """
        self._side = side
        self._peers = peers
        self._path = path
        self._log = log
        self._mutex = threading.Lock()  # protects what follows
        self._der = b""
        self._facts: Facts | None = None
        self._told: str | None = None
        """What was said last of this certificate, without the clock: nothing is said twice."""

    def look(self, der: bytes) -> None:
        """Warn once if this certificate (DER) is not valid at this moment, or not for this side."""
        with self._mutex:
            if der != self._der:
                from filestreamer.wire.sockets.certificate import facts

                self._der, self._facts, self._told = der, facts(der), None
            if self._facts is None:
                return
            remedy = "renew it, or put the clock right"
            fault = self._facts.fault_of_time(datetime.now(UTC))
            if fault is None:
                remedy = "issue it anew"
                fault = self._facts.fault_of_usage(self._side)
            kind = fault.partition(";")[0] if fault else None
            if kind != self._told and fault is not None:
                reason = f"--tls-cert {self._path} {fault}: {self._peers} that check it refuse it: {remedy}"
                self._log.warning("certificate_not_valid", reason=reason)
            self._told = kind
