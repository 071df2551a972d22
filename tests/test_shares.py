"""Who is one caller, and what one may have."""

from __future__ import annotations

import pytest

from ingress._shares import caller_of, share_of_peer


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("", ""),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_of_ipv6_a_network_of_64_bits_is_one_caller(address: str, caller: str) -> None:
    assert caller_of(address) == caller


def test_one_caller_has_three_quarters_and_one_at_least() -> None:
    assert [share_of_peer(most) for most in (1, 4, 100)] == [1, 3, 75]
