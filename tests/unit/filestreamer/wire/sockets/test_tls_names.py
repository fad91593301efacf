"""What a certificate calls the host that a sender connects to."""

import pytest

from filestreamer.wire.sockets.tls import server_name


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("receiver.example", "receiver.example"),
        ("receiver.example.", "receiver.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_server_name(host: str, name: str) -> None:
    assert server_name(host) == name
