"""A Pushgateway behind TLS: what its certificate has to name."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from filestreamer.telemetry.push import Push as Pushing
from tests.support.certificates import Authority

Push = Callable[[str], None]


@pytest.fixture
def push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Push:
    """Return what pushes to a gateway of a name; its certificate names gateway.example."""
    authority = Authority(tmp_path, "ca")
    shown = authority.issue("gateway", "DNS:gateway.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)

    def answer(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = listener.accept()
            with context.wrap_socket(accepted, server_side=True) as sock, sock.makefile("rb") as lines:
                length = 0
                while line := lines.readline().strip().lower():
                    length = int(line.partition(b":")[2]) if line.startswith(b"content-length:") else length
                lines.read(length)
                sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")

    def push_to(host: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            real, port = socket.getaddrinfo, listener.getsockname()[1]
            monkeypatch.setattr(
                socket, "getaddrinfo", lambda _host, *args, **options: real("127.0.0.1", *args, **options)
            )
            thread = threading.Thread(target=answer, args=(listener,))
            thread.start()
            try:
                Pushing(f"https://{host}:{port}", "job").send(b"")
            finally:
                thread.join()
                monkeypatch.setattr(socket, "getaddrinfo", real)

    return push_to


@pytest.mark.parametrize("host", ["gateway.example", "gateway.example."])
def test_a_certificate_with_its_name(push: Push, host: str) -> None:
    push(host)


def test_a_certificate_with_another_name(push: Push) -> None:
    with pytest.raises(OSError, match=r"certificate is not valid for 'other\.example'"):
        push("other.example.")
