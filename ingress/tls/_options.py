"""What is configured of TLS; names and variables are Dynamo's. Source: docs/security.md."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from ..errors import StartupError

# Released processes wait 3 s; a handshake over a slow link, behind a busy peer, needs more.
DEFAULT_HANDSHAKE_TIMEOUT = 10.0

PREFIX = "DYN_TCP_TLS_"

_PATHS = ("cert_path", "key_path", "ca_cert_path", "client_ca_cert_path", "client_cert_path", "client_key_path")
_TRUE = frozenset({"1", "true", "yes", "on"})


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@frozen
class TlsOptions:
    """TLS of one process, which is server on one plane and client on the other.

    A worker takes requests as a server and answers as a client of its callers' listeners; a caller does the reverse. So
    both halves are needed: a certificate with its key, and what peers are trusted by.

    Raises:
        StartupError: a half or a part of a pair is missing.
    """

    cert_path: Path | None = field(default=None, converter=_path)
    """PEM chain of our listener, its own certificate first."""

    key_path: Path | None = field(default=None, converter=_path)
    """PEM key of ``cert_path``; not encrypted, and readable by no others."""

    ca_cert_path: Path | None = field(default=None, converter=_path)
    """PEM certificates that the listeners we connect to must chain to. The system's own are not trusted."""

    client_ca_cert_path: Path | None = field(default=None, converter=_path)
    """PEM certificates that whoever connects to our listener must chain to: given, this is mTLS."""

    client_cert_path: Path | None = field(default=None, converter=_path)
    """PEM chain that we show where we connect."""

    client_key_path: Path | None = field(default=None, converter=_path)
    """PEM key of ``client_cert_path``."""

    server_name: str | None = None
    """The name that certificates of peers must bear; by default the address that is connected to."""

    insecure: bool = False
    """Connect without checking whom to. For development."""

    handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT
    """Seconds for a handshake."""

    allowed_names: tuple[str, ...] = field(default=(), converter=_names)
    """Where not empty: names (SAN) of which a certificate must bear one to be let in by our listener; mTLS only."""

    def __attrs_post_init__(self) -> None:
        self._check_pair("cert_path", "key_path")
        self._check_pair("client_cert_path", "client_key_path")
        if self.cert_path is None:
            raise StartupError(
                f"TLS needs a certificate: {PREFIX}CERT_PATH is not set → {PREFIX}CERT_PATH and {PREFIX}KEY_PATH"
            )
        if self.ca_cert_path is None and not self.insecure:
            raise StartupError(
                f"TLS needs to know whom to trust: {PREFIX}CA_CERT_PATH is not set → {PREFIX}CA_CERT_PATH"
            )
        if self.allowed_names and self.client_ca_cert_path is None:
            raise StartupError(f"TLS: allowed names need client certificates → {PREFIX}CLIENT_CA_CERT_PATH besides")
        if not (math.isfinite(self.handshake_timeout) and self.handshake_timeout > 0):
            raise StartupError(f"TLS: expected a handshake timeout above 0 s, got {self.handshake_timeout:g}")

    def _check_pair(self, cert: str, key: str) -> None:
        if (getattr(self, cert) is None) != (getattr(self, key) is None):
            names = f"{PREFIX}{cert.upper()} and {PREFIX}{key.upper()}"
            raise StartupError(f"TLS: one of a pair is missing: {names} come together or not at all")

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is configured."""
        return tuple(path for name in _PATHS if (path := getattr(self, name)) is not None)

    @property
    def is_mutual(self) -> bool:
        """Whether whoever connects to our listener must show a certificate."""
        return self.client_ca_cert_path is not None

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], *, insecure: bool = False, allowed_names: Sequence[str] = ()
    ) -> TlsOptions | None:
        """Read Dynamo's variables; None where none of them is set. An empty one counts as not set.

        Args:
            insecure: allow what ``DYN_TCP_TLS_INSECURE`` asks for; the variable alone, perhaps a forgotten one, does
                not switch the checks off.
            allowed_names: has no variable of Dynamo's.

        Raises:
            StartupError: they do not fit together, or the variable asks for what was not allowed.
        """
        values = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in environ.items()
            if name.startswith(PREFIX) and value
        }
        if values.get("insecure", "").lower() in _TRUE and not insecure:
            raise StartupError(
                f"{PREFIX}INSECURE is not enough: it would switch off the checking of certificates"
                " → unset it, or say so on the command line too: --tcp-tls-insecure"
            )
        paths = {name: values[name] for name in _PATHS if name in values}
        if not (paths or insecure or allowed_names):
            return None
        return cls(
            **paths,
            server_name=values.get("server_name"),
            insecure=insecure,
            handshake_timeout=_seconds(values.get("handshake_timeout_secs")),
            allowed_names=allowed_names,
        )


def _seconds(text: str | None) -> float:
    try:
        return DEFAULT_HANDSHAKE_TIMEOUT if text is None else float(text)
    except ValueError:
        raise StartupError(f"{PREFIX}HANDSHAKE_TIMEOUT_SECS={text}: expected a number of seconds") from None


def check_key_file(path: Path) -> None:
    """Refuse a key that every user of the machine can read. Its group may: that is how pods are given theirs.

    Raises:
        OSError: there is no such file.
        PermissionError: others may read or write it.
    """
    mode = path.stat().st_mode
    if os.name == "posix" and mode & stat.S_IRWXO:
        raise PermissionError(f"key {path} is open to others (mode {stat.S_IMODE(mode):04o}, expected 0600 or 0640)")
