"""The request token: a header by which a caller proves that it holds a key. Off by default.

Released callers send none, so it is for callers and sidecars of one's own.

    x-ingress-token: v1.<key id>.<unix seconds>.<hex HMAC-SHA256(key, text)>
    text: path|request id|dial-back address|seconds|hex SHA-256(payload)

The payload's control message holds the request id and the address too, so that no two requests have one text. Source:
docs/wire.md §1.1, docs/security.md.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import field, frozen

from ._rotation import Rotated, read_file
from .abc import Push
from .errors import StartupError, TokenRefused
from .tls import check_key_file
from .wire.messages import ConnectionInfo, RequestControlMessage

logger = logging.getLogger("ingress.token")

TOKEN_HEADER = "x-ingress-token"  # noqa: S105 - a header's name

# How far the clocks of callers may be from ours.
WINDOW = 60

# Tokens seen within the window; beyond it the one that came first is forgotten, so that memory stays bounded. Only
# holders of a key get in here.
MAX_SEEN = 100_000

MAX_KEYS = 16

# What HMAC-SHA256 gains nothing from going below, and a key below which somebody typed.
MIN_KEY_SIZE = 16

_ENTRY = re.compile(r"([A-Za-z0-9_-]{1,32}):((?:[0-9A-Fa-f]{2})+)")
_TOKEN = re.compile(r"v1\.([A-Za-z0-9_-]{1,32})\.([0-9]{1,12})\.([0-9a-f]{64})", re.ASCII)


@frozen
class TokenKeys:
    """The keys of a process, by id. The first one signs, all are taken: a rotation has two."""

    keys: Mapping[str, bytes] = field(repr=False)

    path: Path | None = None
    """The file they were read from, and are read from again when it changes; None where they came otherwise."""

    @classmethod
    def parse(cls, text: str) -> TokenKeys:
        """Read ``id:hex`` entries, separated by spaces, commas or lines; a line that begins with # is a comment.

        Raises:
            StartupError: an entry cannot be read; the text names its place and not its content.
        """
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        entries = " ".join(lines).replace(",", " ").split()
        keys: dict[str, bytes] = {}
        for number, entry in enumerate(entries, 1):
            match = _ENTRY.fullmatch(entry)
            if match is None or match[1] in keys or len(match[2]) < 2 * MIN_KEY_SIZE:
                raise StartupError(
                    f"token key {number} cannot be used: expected ID:HEX with an id of its own"
                    f" and at least {MIN_KEY_SIZE} bytes → openssl rand -hex 32"
                )
            keys[match[1]] = bytes.fromhex(match[2])
        if not 0 < len(keys) <= MAX_KEYS:
            raise StartupError(f"token keys cannot be used: expected 1 to {MAX_KEYS}, got {len(keys)}")
        return cls(keys)

    @classmethod
    def read(cls, path: Path) -> TokenKeys:
        """Read a file of keys.

        Raises:
            StartupError: it cannot be read, or others can.
        """
        try:
            check_key_file(path)
            return cls(cls.parse(read_file(path).decode()).keys, path)
        except (OSError, UnicodeDecodeError) as exc:
            raise StartupError(f"token keys cannot be used: {exc}") from exc

    def sign(self, path: str, request_id: str, address: str, payload: bytes, *, now: float | None = None) -> str:
        """Return the header's value for a request. Reads the wall clock, which the worker's must agree with."""
        key_id, key = next(iter(self.keys.items()))
        seconds = str(int(time.time() if now is None else now))
        return f"v1.{key_id}.{seconds}.{_digest(key, path, request_id, address, seconds, payload)}"


class TokenKeyring:
    """The keys in use: those of a file as it is now, others as they were given; for one event loop.

    Raises:
        StartupError: the file cannot be used any more.
    """

    def __init__(self, keys: TokenKeys) -> None:
        self._given = keys
        path = keys.path
        self._file = None if path is None else Rotated((path,), lambda: TokenKeys.read(path), "token keys", logger)

    def current(self) -> TokenKeys:
        return self._given if self._file is None else self._file.current()

    def reload(self) -> bool:
        """Read the file again, where there is one; tell whether that worked. Raises nothing."""
        return self._file is None or self._file.reload()


class TokenGuard:
    """Lets in requests with a good token; one a worker."""

    def __init__(self, keys: TokenKeys, *, clock: Callable[[], float] = time.time) -> None:
        self.keyring = TokenKeyring(keys)
        self._clock = clock
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def check(self, push: Push, control: RequestControlMessage) -> None:
        """Pass a request once.

        Raises:
            TokenRefused: no token, a bad one, too old, or seen before; the text is for the log, not for the caller.
        """
        match = _TOKEN.fullmatch(push.headers.get(TOKEN_HEADER, ""))
        if match is None:
            raise TokenRefused("no token in form v1")
        key_id, seconds, given = match[1], match[2], match[3]
        # What costs nothing first: hashing 32 MiB takes 28 ms.
        if (key := self.keyring.current().keys.get(key_id)) is None:
            raise TokenRefused("token is of a key that is not known")
        if abs(self._clock() - int(seconds)) > WINDOW:
            raise TokenRefused(f"token is more than {WINDOW} s old, or from the future")
        try:
            address = ConnectionInfo.from_address(control.connection_info).address
        except Exception as exc:
            raise TokenRefused("its connection info cannot be read") from exc
        expected = _digest(key, push.path or "", control.id, address, seconds, push.payload)
        if not hmac.compare_digest(expected, given):
            raise TokenRefused("token is not of this request")
        digest = bytes.fromhex(given)
        if digest in self._seen:
            raise TokenRefused("token was used before")
        self._seen[digest] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)


def _digest(key: bytes, path: str, request_id: str, address: str, seconds: str, payload: bytes) -> str:
    text = "|".join((path, request_id, address, seconds, hashlib.sha256(payload).hexdigest()))
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
