"""Which addresses may be dialled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ingress import DialPolicy
from ingress import _dial_policy as module
from ingress.errors import DialBackRefused
from ingress.wire.addresses import parse_address

PEER, THIS_HOST = "203.0.113.5", "198.51.100.1"


@pytest.fixture(autouse=True)
def _addresses_of_this_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This host has one address beside loopback, in IPv4 and in IPv6."""
    monkeypatch.setattr(module, "_can_bind", lambda ip: str(ip) in (THIS_HOST, "2001:db8:1::1"))
    module.is_of_this_host.cache_clear()
    yield
    module.is_of_this_host.cache_clear()


def is_allowed(policy: DialPolicy, address: str, peer_host: str | None, own: Any = ()) -> bool:
    try:
        policy.check(parse_address(address), peer_host=peer_host, own_addresses=own)
    except DialBackRefused:
        return False
    return True


# policy, address, where the request came from, allowed
TABLE = [
    # peer: where the request came from
    ("peer", f"{PEER}:5000", PEER, True),
    ("peer", f"[::ffff:{PEER}]:5000", PEER, True),
    ("peer", f"{PEER}:5000", f"::ffff:{PEER}", True),
    ("peer", "203.0.113.6:5000", PEER, False),
    ("peer", "127.0.0.1:5000", PEER, False),
    ("peer", "[::1]:5000", PEER, False),
    ("peer", "[::ffff:127.0.0.1]:5000", PEER, False),
    ("peer", f"{THIS_HOST}:5000", PEER, False),
    ("peer", f"{PEER}:1023", PEER, False),
    ("peer", f"{PEER}:1024", PEER, True),
    ("peer", f"{PEER}:5000", None, False),
    # both of this host: a caller beside the worker connects from loopback and names its routable address
    ("peer", "127.0.0.1:5000", "127.0.0.1", True),
    ("peer", f"{THIS_HOST}:5000", "127.0.0.1", True),
    ("peer", "127.0.0.1:5000", THIS_HOST, True),
    ("peer", "127.9.9.9:5000", "127.0.0.1", True),
    ("peer", "[2001:db8:1::1]:5000", "::1", True),
    ("peer", "[::1]:5000", THIS_HOST, True),
    ("peer", f"{PEER}:5000", "127.0.0.1", False),
    ("peer", "2001:db8:1::1:5000", "::1", True),  # bare, as released callers write it
    # always denied
    ("any", "0.0.0.0:5000", PEER, False),
    ("any", "[::]:5000", PEER, False),
    ("any", "[::ffff:0.0.0.0]:5000", PEER, False),
    ("any", "169.254.169.254:8000", PEER, False),
    ("any", "[::ffff:169.254.169.254]:8000", PEER, False),
    ("any", "[2002:a9fe:a9fe::1]:8000", PEER, False),
    ("any", "[64:ff9b::a9fe:a9fe]:8000", PEER, False),
    ("any", "[fe80::1]:5000", PEER, False),
    ("any", "224.0.0.1:5000", PEER, False),
    ("any", "[ff02::1]:5000", PEER, False),
    ("any", "255.255.255.255:5000", PEER, False),
    ("any", "192.0.2.9:80", PEER, False),
    ("any", "192.0.2.9:5000", PEER, True),
    ("any", "192.0.2.9:5000", None, True),
]


@pytest.mark.parametrize(("name", "address", "peer_host", "allowed"), TABLE)
def test_d03_the_policies_allow_what_their_table_says(
    name: Any, address: str, peer_host: str | None, allowed: bool
) -> None:
    assert is_allowed(DialPolicy(name), address, peer_host) is allowed


def test_cidr_allows_what_lies_in_allow_and_not_in_deny() -> None:
    policy = DialPolicy("cidr", allow=["10.0.0.0/8", "2001:db8:7::/48"], deny=["10.1.0.0/16"])
    assert is_allowed(policy, "10.0.0.9:5000", None)
    assert is_allowed(policy, "[::ffff:10.0.0.9]:5000", PEER)
    assert is_allowed(policy, "[2001:db8:7::9]:5000", PEER)
    assert not is_allowed(policy, "10.1.0.9:5000", PEER)
    assert not is_allowed(policy, f"{PEER}:5000", PEER)
    assert not is_allowed(policy, "10.0.0.9:80", PEER)


@pytest.mark.parametrize("name", ["peer", "cidr", "any"])
def test_an_exact_entry_lifts_what_is_always_denied_and_deny_still_wins(name: Any) -> None:
    policy = DialPolicy(name, allow=["169.254.169.254/32"])
    assert is_allowed(policy, "169.254.169.254:80", PEER)
    assert not is_allowed(policy, "169.254.169.253:8080", PEER)
    denied = DialPolicy(name, allow=["169.254.169.254/32"], deny=["169.254.0.0/16"])
    assert not is_allowed(denied, "169.254.169.254:80", PEER)


def test_a_network_that_contains_an_address_does_not_name_it() -> None:
    assert not is_allowed(DialPolicy("cidr", allow=["169.254.0.0/16"]), "169.254.169.254:8000", PEER)


@pytest.mark.parametrize("own", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_the_workers_own_listeners_are_never_dialled(own: str) -> None:
    policy = DialPolicy()
    assert not is_allowed(policy, "127.0.0.1:7000", "127.0.0.1", [(own, 7000)])
    assert not is_allowed(policy, "[::ffff:127.0.0.1]:7000", "127.0.0.1", [(own, 7000)])
    assert is_allowed(policy, "127.0.0.1:7001", "127.0.0.1", [(own, 7000)])


def test_where_any_address_can_be_bound_binding_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With net.ipv4.ip_nonlocal_bind every address would pass for one of this host."""
    monkeypatch.setattr(module, "_can_bind", lambda ip: True)
    assert not is_allowed(DialPolicy(), "192.0.2.77:5000", PEER)
    assert not is_allowed(DialPolicy(), f"{THIS_HOST}:5000", PEER)
    assert is_allowed(DialPolicy(), f"{PEER}:5000", PEER)


def test_a_policy_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8"):
        DialPolicy("cidr", allow=["10.0.0.1/8"])
