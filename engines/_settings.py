"""What engines read from arguments and from environment variables, checked when the worker starts."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from ingress.errors import StartupError


def checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port)
    except ValueError:
        is_usable = False
    if not is_usable or parts.query or parts.fragment:
        raise StartupError("OPENAI_BASE_URL: expected http://host:port/v1 or https://…, without a query")
    if "@" in parts.netloc:
        raise StartupError("OPENAI_BASE_URL must not hold credentials; the key belongs into OPENAI_API_KEY")
    return url.rstrip("/")


def checked_key(key: str, variable: str) -> str:
    if key and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise StartupError(f"{variable} holds characters that no HTTP header may hold")
    return key


def seconds(value: float | None, variable: str, default: float) -> float:
    given: float | str = value if value is not None else os.environ.get(variable, "").strip() or default
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise StartupError(f"{variable}: expected seconds above 0, got {str(given)[:40]!r}")
    return seconds


def whole_number(value: int | None, variable: str, default: int) -> int:
    given: int | str = value if value is not None else os.environ.get(variable, "").strip() or default
    try:
        number = int(given)
    except ValueError:
        number = 0
    if not 0 < number < 2**31:
        raise StartupError(f"{variable}: expected a whole number above 0, got {str(given)[:40]!r}")
    return number
