"""What a worker says at its start of the doors that stand open: one line each."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable

from .tls import TlsOptions

logger = logging.getLogger("ingress.worker")


def warn_of_open_doors(
    listening: Iterable[str],
    *,
    tls: TlsOptions | None,
    has_tokens: bool,
    dial_policy: str,
    status_host: str | None = None,
) -> None:
    """Log a warning for each thing that an operator may not have meant.

    Args:
        listening: the addresses that requests come in by.
        status_host: that of the status server, None where there is none.
    """
    is_open = not has_tokens and (tls is None or not tls.is_mutual)
    doors = [
        *(["whoever reaches the port can send requests"] if is_open else []),
        *(["nothing is encrypted"] if tls is None else []),
    ]
    for host in listening:
        if doors and not _is_loopback(host):
            logger.warning("listening on %s: %s", host, ", and ".join(doors))
    if tls is not None and tls.insecure:
        logger.warning("insecure TLS: certificates of the callers' listeners are not checked")
    if status_host is not None and not _is_loopback(status_host):
        logger.warning("status server on %s: whoever reaches the port reads metrics and health", status_host)
    if dial_policy == "any":
        logger.warning("dial policy any: whoever sends a request chooses where this worker connects to")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
