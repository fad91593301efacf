"""Which sizes of packets are tried where large ones are lost."""

import socket

from sender.network.path_mtu import MSS_STEPS, PathMtu


def test_without_a_suspicion_nothing_is_limited() -> None:
    path = PathMtu()
    assert path.mss_bytes is None
    assert path.works() is None


def test_each_step_is_tried_once() -> None:
    path = PathMtu()
    tried = [path.mss_bytes for mss_bytes in (1448, 1208, 524) if path.suspect("lost", mss_bytes)]
    assert tried == list(MSS_STEPS)
    assert path.suspicion is not None
    assert "MTU" not in path.suspicion


def test_a_connection_from_before_lowers_nothing() -> None:
    path = PathMtu()
    assert path.suspect("lost", 1448)
    assert path.suspect("lost", 1448)
    assert path.mss_bytes == MSS_STEPS[0]
    assert path.works() == MSS_STEPS[0]
    assert (path.suspicion, path.works()) == (None, None)


def test_the_limit_holds_for_what_connects() -> None:
    path = PathMtu()
    path.suspect("lost", 1448)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        path.limit(sock)
        sock.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            for end in (sock, accepted):
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= MSS_STEPS[0]


def test_where_nothing_comes_back_each_size_is_tried_in_turn() -> None:
    path = PathMtu()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        tried = []
        for _ in range(4):
            path.handshake_failed(sock)
            tried.append(path.mss_bytes)
    assert tried == [*MSS_STEPS, None, MSS_STEPS[0]]
    assert path.welcomed() == MSS_STEPS[0]
    assert path.suspicion is None
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        path.handshake_failed(sock)
    assert path.mss_bytes == MSS_STEPS[0]
