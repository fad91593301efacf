"""What tests of attacks share: what must hold meanwhile, and what others say who come to the wrong port."""

import struct
from collections.abc import Mapping

from filestreamer.wire.framing import frame_of
from tests.support.processes import descriptors
from tests.support.services import Pair, Service, same
from tests.support.staging import Staging

TOKEN = "a token that is long enough"
WITH_TOKEN = {"FILESTREAMER_TOKEN": TOKEN}
MIB = 1 << 20
GROWTH_BYTES = 64 * MIB
"""How far an attack may make a service's memory grow: a few connections' blocks and buffers, and no more."""

STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
    "tls": bytes.fromhex("16030100f8010000f40303") + bytes(64),
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "zeros": bytes(100),
    "ones": b"\xff" * 100,
    "newlines": b"\r\n" * 50,
    "frame over 1 KiB": struct.pack(">I8s", 1025, bytes(8)),
    "wrong checksum": struct.pack(">I8s", 4, bytes(8)) + b"abcd",
    "no protobuf": frame_of(b"\xff\xff\xff\xff"),
    "unknown kind": frame_of(b"\xfa\x7f\x00"),
}

DAMAGE = {"zeros", "ones", "newlines", "frame over 1 KiB", "wrong checksum"}
"""What may have been a frame before it was damaged: CORRUPT, retryable. The others are PROTOCOL."""


def unharmed(receiver: Service) -> None:
    """Check that the receiver still runs, and met no bug of its own."""
    assert receiver.process.poll() is None, receiver.stderr
    for sign in ("Traceback", '"internal"', "please report", "(a bug)"):
        assert sign not in receiver.stderr, receiver.stderr


def sockets_of(service: Service) -> list[str]:
    """Return the sockets that a service has open."""
    return [each for each in descriptors(service.process.pid) if each.startswith("socket:")]


class Running:
    """A real transfer that takes one or two seconds, while others attack; at a lower rate, longer."""

    def __init__(
        self,
        pair: Pair,
        address: str,
        *flags: object,
        env: Mapping[str, str] | None = None,
        rate_limit: str = "4MiB/s",
    ) -> None:
        self._pair = pair
        self.file = pair.file("running", 6 * MIB, seed=5)
        rate = ("--rate-limit", rate_limit, "--chunk-size", "64KiB", "--connections", 4)
        self.sender = pair.sender(self.file, address, *rate, *flags, env=env)
        Staging(pair.destination, "running").wait_for_records(4)

    def arrives(self) -> None:
        """Wait for its end: identical, and no connection of it was lost."""
        result = self.sender.succeeds()
        assert same(self.file, self._pair.destination / "running")
        assert (result["reconnects"], result["resent_chunks"]) == (0, 0)
