"""What the data connections of one transfer have in common."""

from typing import Any

from filestreamer.process.rate_limit import RateLimit
from filestreamer.records import Record
from sender.dispatch.manifest import Manifest
from sender.dispatch.send_queue import SendQueue
from sender.dispatch.verify import Verifier
from sender.mailbox import Mailbox
from sender.network.connector import Connector
from sender.network.peer import Peer
from sender.source.known_digests import KnownDigests


class Shared(Record):
    """What all data connections of a transfer use."""

    manifest: Manifest
    queue: SendQueue
    connector: Connector
    peer: Peer
    mailbox: Mailbox
    rate_limit: RateLimit | None
    log: Any
    verifier: Verifier
    digests: KnownDigests | None = None
    """Digests of what this process has sent, for other transfers; None where there are none."""
