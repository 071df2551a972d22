"""When a certificate expires, read from its file.

Python's ``ssl`` shows this of a peer's certificate only, and of its own of none; a walk over five DER elements does
not need a cryptography library. Source: RFC 5280 §4.1, X.690 §8.1 and §11.7.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

from .._rotation import read_file

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"

_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17


def expiry_of_file(path: Path) -> float:
    """Return the Unix time at which the first of the file's certificates to expire does.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no certificate.
    """
    text = read_file(path).decode("ascii", errors="replace")
    times = [
        _not_after(ssl.PEM_cert_to_DER_cert(f"{_BEGIN}{part.partition(_END)[0]}{_END}\n"))
        for part in text.split(_BEGIN)[1:]
    ]
    if not times:
        raise ValueError(f"no certificate in {path}")
    return min(times)


def _not_after(der: bytes) -> float:
    """Read ``Certificate.tbsCertificate.validity.notAfter``."""
    _, certificate, _ = _element(der)
    _, body, _ = _element(certificate)
    if body[:1] == bytes([_VERSION]):
        body = _element(body)[2]
    for _ in range(3):  # serial number, signature algorithm, issuer
        body = _element(body)[2]
    tag, validity, _ = _element(body)
    if tag != _SEQUENCE:
        raise ValueError("a certificate without a validity")
    _, _, rest = _element(validity)
    tag, when, _ = _element(rest)
    text = when.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and the content of the first element, and what follows it."""
    if len(data) < 2:
        raise ValueError("a certificate that is cut short")
    size, start = data[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start], "big")
    if len(data) < start + size:
        raise ValueError("a certificate that is cut short")
    return data[0], data[start : start + size], data[start + size :]
