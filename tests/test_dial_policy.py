"""Which addresses may be dialled."""

from __future__ import annotations

import errno
import ipaddress
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import pytest

from ingress import DialPolicy, _dial_guard
from ingress import _host_addresses as module
from ingress._dial_guard import DialGuard
from ingress.errors import DialBackRefused
from ingress.wire.addresses import parse_address
from ingress.wire.messages import StreamAddress

PEER, THIS_HOST = "203.0.113.5", "198.51.100.1"

# The kinds of routes, as rtnetlink(7) numbers them.
UNICAST, LOCAL = 1, 2


@pytest.fixture(autouse=True)
def _addresses_of_this_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This host has one address beside loopback, in IPv4 and in IPv6."""
    own = (THIS_HOST, "2001:db8:1::1")
    monkeypatch.setattr(module, "_kind_of_route", lambda ip: LOCAL if str(ip) in own else UNICAST)
    yield


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
    # who comes from a 6to4 or NAT64 address is not the one inside of it
    ("peer", "127.0.0.1:5000", "2002:7f00:1::5", False),
    ("peer", "127.0.0.1:5000", "64:ff9b::7f00:1", False),
    ("peer", f"{THIS_HOST}:5000", "2002:c633:6401::5", False),
    ("peer", f"{THIS_HOST}:5000", "64:ff9b::c633:6401", False),
    ("peer", f"{PEER}:5000", "2002:cb00:7105::5", False),
    ("peer", "[2002:cb00:7105::5]:5000", "2002:cb00:7105::5", True),
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
    ("any", "127.255.255.255:5000", PEER, False),  # of the loopback network
    ("peer", "127.255.255.255:5000", "127.0.0.1", False),
    ("any", "0.1.2.3:5000", PEER, False),
    ("any", "240.0.0.1:5000", PEER, False),
    ("any", "[::ffff:240.0.0.1]:5000", PEER, False),
    ("any", "192.0.2.9:80", PEER, False),
    ("any", "192.0.2.9:5000", PEER, True),
    ("any", "192.0.2.9:5000", None, True),
]


@pytest.mark.parametrize(("name", "address", "peer_host", "allowed"), TABLE)
def test_d03_the_policies_allow_what_their_table_says(
    name: Any, address: str, peer_host: str | None, allowed: bool
) -> None:
    assert is_allowed(DialPolicy(name), address, peer_host) is allowed


# How 169.254.169.254 and 10.1.2.3 may stand in IPv6 addresses that somebody forwards to them.
FORMS = [
    ("::ffff:169.254.169.254", "::ffff:10.1.2.3"),  # mapped
    ("::169.254.169.254", "::10.1.2.3"),  # compatible
    ("::ffff:0:169.254.169.254", "::ffff:0:10.1.2.3"),  # translated
    ("2002:a9fe:a9fe::1", "2002:a01:203::1"),  # 6to4
    ("64:ff9b::a9fe:a9fe", "64:ff9b::a01:203"),  # NAT64
    ("64:ff9b:1::a9fe:a9fe", "64:ff9b:1::a01:203"),  # NAT64 of one's own, as in RFC 8215
    ("64:ff9b:1:ffff::a9fe:a9fe", "64:ff9b:1:ffff::a01:203"),
    ("64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:a01:2:300::"),  # with prefixes of 48, 56 and 64 bits
    ("64:ff9b:1:a9:fe:a9fe::", "64:ff9b:1:a:1:203::"),
    ("64:ff9b:1:7:a9:fea9:fe00:0", "64:ff9b:1:7:a:102:300:0"),
    ("2001:0:c000:201:0:7fff:5601:5601", "2001:0:c000:201:0:7fff:f5fe:fdfc"),  # Teredo: the client, inverted
    ("2001:0:a9fe:a9fe:0:7fff:3fff:fdfe", "2001:0:a01:203:0:7fff:3fff:fdfe"),  # and the server
    ("2001:db8::5efe:a9fe:a9fe", "2001:db8::200:5efe:a01:203"),  # ISATAP
]


@pytest.mark.parametrize(("metadata", "private"), FORMS)
def test_d03_ipv4_inside_ipv6_is_checked_in_every_form(metadata: str, private: str) -> None:
    everything = ["0.0.0.0/0", "::/0"]
    for policy in (DialPolicy("any"), DialPolicy("cidr", allow=everything), DialPolicy("cidr", allow=["::/0"])):
        assert not is_allowed(policy, f"[{metadata}]:8000", PEER)
    assert is_allowed(DialPolicy("any"), f"[{private}]:8000", PEER)
    assert is_allowed(DialPolicy("cidr", allow=everything), f"[{private}]:8000", PEER)
    assert not is_allowed(DialPolicy("cidr", allow=["::/0"]), f"[{private}]:8000", PEER)
    assert not is_allowed(DialPolicy("cidr", allow=everything, deny=["10.0.0.0/8"]), f"[{private}]:8000", PEER)
    assert not is_allowed(DialPolicy(), f"[{private}]:8000", PEER)
    assert not is_allowed(DialPolicy("any"), f"[{private}]:8000", PEER, [("10.1.2.3", 8000)])


def test_d03_the_forms_of_loopback_are_not_this_hosts() -> None:
    forms = ["::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::7f00:1", "2001:0:c000:201:0:7fff:80ff:fffe"]
    assert not any(is_allowed(DialPolicy(), f"[{form}]:5000", peer) for form in forms for peer in ("127.0.0.1", PEER))


@pytest.mark.parametrize("literal", [private for _, private in FORMS])
def test_back_where_a_request_came_from_is_allowed_whatever_is_inside_of_the_address(literal: str) -> None:
    assert is_allowed(DialPolicy(), f"[{literal}]:5000", literal)


def test_addresses_without_ipv4_inside_are_their_only_form() -> None:
    for text in ("192.0.2.1:1", "[::1]:1", "[::]:1", "[2001:db8::1]:1", "[fd00::1]:1"):
        address = parse_address(text)
        assert address.forms == {address.ip}


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


@pytest.mark.parametrize("name", ["peer", "cidr", "any"])
def test_no_entry_lifts_the_rule_for_the_workers_own_listeners(name: Any) -> None:
    policy = DialPolicy(name, allow=["127.0.0.1/32", "127.0.0.0/8"])
    assert is_allowed(policy, "127.0.0.1:80", PEER), "an entry names a host and all its ports"
    assert is_allowed(policy, "127.0.0.1:7001", PEER, [("127.0.0.1", 7000)])
    assert not is_allowed(policy, "127.0.0.1:7000", PEER, [("127.0.0.1", 7000)])


def test_a_network_that_contains_an_address_does_not_name_it() -> None:
    assert not is_allowed(DialPolicy("cidr", allow=["169.254.0.0/16"]), "169.254.169.254:8000", PEER)


@pytest.mark.parametrize("own", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_the_workers_own_listeners_are_never_dialled(own: str) -> None:
    policy = DialPolicy()
    assert not is_allowed(policy, "127.0.0.1:7000", "127.0.0.1", [(own, 7000)])
    assert not is_allowed(policy, "[::ffff:127.0.0.1]:7000", "127.0.0.1", [(own, 7000)])
    assert is_allowed(policy, "127.0.0.1:7001", "127.0.0.1", [(own, 7000)])


def test_where_no_routes_can_be_asked_for_an_address_that_can_be_bound_is_this_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_kind_of_route", refuse)
    monkeypatch.setattr(module, "_bind", lambda ip: None if str(ip) == THIS_HOST else errno.EADDRNOTAVAIL)
    assert is_allowed(DialPolicy(), f"{THIS_HOST}:5000", "127.0.0.1")
    assert not is_allowed(DialPolicy(), "192.0.2.77:5000", "127.0.0.1")


def test_where_any_address_can_be_bound_binding_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With net.ipv4.ip_nonlocal_bind every address would pass for one of this host."""
    monkeypatch.setattr(module, "_kind_of_route", refuse)
    monkeypatch.setattr(module, "_bind", lambda ip: None)
    assert not is_allowed(DialPolicy(), "192.0.2.77:5000", PEER)
    assert not is_allowed(DialPolicy(), f"{THIS_HOST}:5000", PEER)
    assert is_allowed(DialPolicy(), f"{PEER}:5000", PEER)


def test_an_address_that_moves_to_another_host_is_not_taken_for_this_hosts_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It had been for as long as the worker ran: who had it next could have it dial services on its loopback."""
    seconds, own = [0], [PEER]
    monkeypatch.setattr(module, "present_second", lambda: seconds[0])
    monkeypatch.setattr(module, "_kind_of_route", lambda ip: LOCAL if str(ip) in own else UNICAST)
    module._asked.cache_clear()
    guard = DialGuard(DialPolicy())
    monkeypatch.setattr(_dial_guard, "present_second", lambda: seconds[0])

    def may_dial(address: str) -> bool:
        info = {"address": address, "subject": "s", "context": "id", "stream_type": "response"}
        try:
            guard.check(PEER, "id", StreamAddress("tcp_server", json.dumps(info)), "response")
        except DialBackRefused:
            return False
        return True

    assert may_dial("127.0.0.1:5000") and not may_dial(f"{THIS_HOST}:5000")
    own[:] = [THIS_HOST]
    seconds[0] += 1
    assert not may_dial("127.0.0.1:5000") and not may_dial(f"{THIS_HOST}:5000")
    own += [PEER]
    seconds[0] += 1
    assert may_dial("127.0.0.1:5000") and may_dial(f"{THIS_HOST}:5000")


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EMFILE, errno.EPERM])
@pytest.mark.parametrize("own", ["0.0.0.0", "::"])
def test_d03_the_workers_own_ports_are_not_dialled_where_the_system_tells_nothing(
    number: int, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(ip: object) -> int:
        raise OSError(number, "no sockets for this")

    for question in ("_kind_of_route", "_bind", "_connect"):
        monkeypatch.setattr(module, question, fail)
    assert not is_allowed(DialPolicy(), f"{PEER}:7000", PEER, [(own, 7000)])
    assert is_allowed(DialPolicy(), f"{PEER}:7001", PEER, [(own, 7000)])


@pytest.mark.parametrize("own", ["0.0.0.0", "::"])
def test_d03_nor_where_it_refuses_to_bind_at_all(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kind_of_route", refuse)
    monkeypatch.setattr(module, "_bind", lambda ip: errno.EACCES)
    assert not is_allowed(DialPolicy(), f"{PEER}:7000", PEER, [(own, 7000)])
    assert is_allowed(DialPolicy(), f"{PEER}:7001", PEER, [(own, 7000)])


def test_d03_a_listener_of_our_own_that_opens_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dial_guard, "present_second", lambda: 0)
    own = list[tuple[str, int]]()
    guard = DialGuard(DialPolicy(), own)
    info = {"address": f"{PEER}:7000", "subject": "s", "context": "id", "stream_type": "response"}
    stream = StreamAddress("tcp_server", json.dumps(info))
    guard.check(PEER, "id", stream, "response")
    own.append((PEER, 7000))
    with pytest.raises(DialBackRefused, match="this worker's own"):
        guard.check(PEER, "id", stream, "response")


@pytest.mark.parametrize("denied", ["::ffff:10.0.0.0/104", "10.0.0.0/8"])
@pytest.mark.parametrize("address", ["10.7.0.1:5000", "[::ffff:10.7.0.1]:5000"])
def test_networks_of_mapped_addresses_are_those_of_ipv4(denied: str, address: str) -> None:
    assert not is_allowed(DialPolicy("any", deny=[denied]), address, PEER)
    assert is_allowed(DialPolicy("cidr", allow=[denied]), address, PEER)
    assert is_allowed(DialPolicy("any", deny=[denied]), "11.7.0.1:5000", PEER)


def test_a_zone_of_an_address_is_refused() -> None:
    with pytest.raises(ValueError, match="has a zone"):
        DialPolicy("cidr", allow=["fe80::1%lo"])


def refuse(ip: object) -> int:
    raise OSError(errno.EAFNOSUPPORT, "not here")


def are_of_this_host(script: str, addresses: list[str]) -> list[bool]:
    """Ask in a network of its own that a script sets up; skips where none can be made."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    script = f"set -e\nip link set lo up\n{dedent(script)}"
    before = ["unshare", "--net", "--map-root-user", "sh", "-c"]
    probe = subprocess.run([*before, script], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no network of its own can be made here: {probe.stderr.strip()}")
    asked = """
    import ipaddress, sys
    from ingress._host_addresses import is_of_this_host
    print(*[is_of_this_host(ipaddress.ip_address(text)) for text in sys.argv[1:]])
    """
    told = subprocess.run(
        [*before, f'{script}\nexec "$@"', "sh", sys.executable, "-c", dedent(asked), *addresses],
        capture_output=True,
        text=True,
        check=True,
    )
    return [text == "True" for text in told.stdout.split()]


def test_d03_an_address_of_this_host_is_known_where_any_address_can_be_bound() -> None:
    """In a network of its own, with addresses of both versions and others beside them."""
    script = """
    ip address add 10.60.0.1/32 dev lo
    ip address add 10.60.0.2/32 dev lo
    ip -6 address add fd22::1/128 dev lo nodad
    sysctl -qw net.ipv4.ip_nonlocal_bind=1 net.ipv6.ip_nonlocal_bind=1
    """
    addresses = ["10.60.0.1", "10.60.0.2", "fd22::1", "10.60.0.3", "fd22::2", "192.0.2.1", "2001:db8::1"]
    assert are_of_this_host(script, addresses) == [True] * 3 + [False] * 4


@pytest.mark.parametrize(("protocol", "is_own"), [("udp", False), ("tcp", True)])
def test_d03_an_address_is_this_hosts_where_connections_to_it_stay_here(protocol: str, is_own: bool) -> None:
    """Where only datagrams did, connections left for another host."""
    script = f"""
    ip rule add ipproto {protocol} lookup 104
    ip route add local 198.51.100.0/24 dev lo table 104
    ip -6 rule add ipproto {protocol} lookup 104
    ip -6 route add local 2001:db8:9::/64 dev lo table 104
    """
    assert are_of_this_host(script, ["198.51.100.5", "2001:db8:9::5"]) == [is_own] * 2


def test_what_could_not_be_asked_for_want_of_descriptors_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    address = ipaddress.ip_address("127.255.255.255")

    def none_left(*args: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as short:
        short.setattr(socket, "socket", none_left)
        module._asked.cache_clear()
        assert not module.is_broadcast(address)
    assert module.is_broadcast(address)


def test_a_policy_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8"):
        DialPolicy("cidr", allow=["10.0.0.1/8"])
