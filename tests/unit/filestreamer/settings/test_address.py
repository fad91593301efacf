"""HOST:PORT, and addresses without a port. What both services accept of them is in their own tests of settings."""

import pytest

from filestreamer.settings.address import Address, numeric_address, parse_address


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("receiver.example.:7800", Address("receiver.example.", 7800)),
        ("[fe80::1%eth0]:1", Address("fe80::1%eth0", 1)),
        ("[fe80::1%eth0.100]", Address("fe80::1%eth0.100", 7800)),
        ("[febf::1%2]", Address("febf::1%2", 7800)),
        ("[fec0::1]", Address("fec0::1", 7800)),
    ],
)
def test_parse_address(written: str, address: Address) -> None:
    assert parse_address(written) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("[fe80::1]:7800", "a link-local address needs its interface, such as fe80::1%eth0"),
        ("[fe80::1%]:7800", "needs its interface"),
        ("[FEBF::1]", "needs its interface"),
        ("[2001:db8::1%eth0]:7800", "write 2001:db8::1"),
        ("[::1%lo]", "only link-local addresses"),
        ("receiver.example..", "is not an address"),
        (".", "is not an address"),
    ],
)
def test_what_is_no_address(written: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        parse_address(written)
    assert repr(written) in str(caught.value)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[fe80::1%eth0]", "fe80::1%eth0"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_numeric_address(written: str, address: str) -> None:
    assert numeric_address(written) == address


@pytest.mark.parametrize(
    "written",
    [
        *(
            "",
            "host",
            "192.0.2",
            "192.0.2.1:0",
            "192.0.2.1%eth0",
            "[192.0.2.1",
            "[2001:db8::1]:7800",
            "2001:db8::1%eth0",
        ),
        *("fe80::1", "fe80::1%", "1::2::3", "\0", "\udcff", 1, None, ["192.0.2.1"]),
    ],
)
def test_what_is_no_numeric_address(written: object) -> None:
    with pytest.raises(ValueError, match="is not an address: "):
        numeric_address(written)


@pytest.mark.parametrize(
    ("host", "is_numeric"), [("192.0.2.1", True), ("::1", True), ("fe80::1%lo", True), ("h", False), ("", False)]
)
def test_is_numeric(host: str, is_numeric: bool) -> None:
    assert Address(host, 1).is_numeric == is_numeric
