"""The certificate that a receiver makes for its run."""

import os
import ssl
from datetime import UTC, datetime

import pytest

from filestreamer.wire.errors import UsageError
from filestreamer.wire.sockets import tls
from filestreamer.wire.sockets.certificate import facts, make_ephemeral


def test_it_is_valid_whatever_a_clock_says() -> None:
    read = facts(make_ephemeral([]).certificate)
    assert read is not None
    for year in (1971, 2026, 2100, 9999):
        assert read.fault_of_time(datetime(year, 1, 1, tzinfo=UTC)) is None
    assert read.fault_of_usage("receiver") is None
    assert read.fault_of_usage("sender") is not None


def test_it_is_for_the_addresses_that_the_receiver_listens_on() -> None:
    """And not for the name of the machine, which is nobody's business."""
    read = facts(make_ephemeral(["192.0.2.1", "fe80::1%eth0", "::", "0.0.0.0"]).certificate)
    assert read is not None
    assert set(read.names) == {"localhost", "127.0.0.1", "::1", "192.0.2.1", "fe80::1"}


def test_each_run_has_another_one() -> None:
    first, second = make_ephemeral([]), make_ephemeral([])
    assert first.certificate != second.certificate
    assert first.key != second.key


def test_it_can_be_trusted_as_a_file() -> None:
    """Who copies it gets what OpenSSL verifies: name, dates and all."""
    made = make_ephemeral([])
    server = tls.ephemeral_server_context(made, None).context
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=made.certificate)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname="localhost"), server.wrap_bio(up, down, server_side=True)]
    with pytest.raises(ssl.SSLWantReadError):
        ends[0].do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        ends[1].do_handshake()
    ends[0].do_handshake()
    assert ends[0].getpeercert(binary_form=True) == made.certificate


def test_its_key_is_never_on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc there is no other way to give OpenSSL a key: so that is an error."""
    made = make_ephemeral([])
    monkeypatch.setattr(os.path, "exists", lambda _path: False)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda: pytest.fail("a file was made"))
    with pytest.raises(UsageError, match="--tls without --tls-cert needs /proc"):
        tls.ephemeral_server_context(made, None)
