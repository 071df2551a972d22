"""The two TLS contexts of a process, read again when their files change.

A certificate that is rotated serves from the next connection on; what is open stays open. New files that cannot be
used, half of a rotation among them, change nothing: the old ones go on, a line says so, and they are tried again.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from pathlib import Path

import trio

from .._text import RateLimitedLogger, printable
from ..errors import StartupError
from ._certificates import expiry_of_file
from ._options import TlsOptions, check_key_file

logger = logging.getLogger("ingress.tls")

# How often files are looked at, and only when a connection is made: a few microseconds each.
CHECK_INTERVAL = 1.0

_Fingerprint = tuple[tuple[int, int, int, int] | None, ...]


class TlsContexts:
    """Makes the contexts of :class:`TlsOptions`; for one event loop.

    Raises:
        StartupError: a file cannot be used.
    """

    def __init__(self, options: TlsOptions) -> None:
        self.options = options
        self._log = RateLimitedLogger(logger, per_second=1)
        self._fingerprint = _fingerprint_of(options.files)
        try:
            self._load()
        except (OSError, ValueError) as exc:
            raise StartupError(f"TLS files cannot be used: {_reason(exc, options)}") from exc
        self._checked_at: float | None = None

    def server(self) -> ssl.SSLContext:
        """The context of connections that come in."""
        self._check_files()
        return self._server

    def client(self) -> ssl.SSLContext:
        """The context of connections that go out."""
        self._check_files()
        return self._client

    def expiries(self) -> Mapping[str, float]:
        """Unix times at which what was loaded expires, by what it is for; the words are fixed."""
        return self._expiries

    def reload(self) -> bool:
        """Read every file again, whether it changed or not; tell whether that worked. Raises nothing."""
        fingerprint = _fingerprint_of(self.options.files)
        try:
            self._load()
        except (OSError, ValueError) as exc:
            reason = printable(_reason(exc, self.options))
            self._log.log(
                logging.ERROR, "certificates", "certificates cannot be read again, the old ones go on: %s", reason
            )
            return False
        self._fingerprint = fingerprint
        logger.info("certificates read again")
        return True

    def _check_files(self) -> None:
        now = trio.current_time()
        if self._checked_at is not None and 0.0 <= now - self._checked_at < CHECK_INTERVAL:
            return
        self._checked_at = now
        if _fingerprint_of(self.options.files) != self._fingerprint:
            self.reload()

    def _load(self) -> None:
        """Make both contexts; where one fails, neither is taken."""
        options = self.options
        server, client = make_server_context(options), make_client_context(options)
        paths = {"server": options.cert_path, "client": options.client_cert_path}
        paths |= {"ca": options.ca_cert_path, "client_ca": options.client_ca_cert_path}
        expiries = {name: expiry_of_file(path) for name, path in paths.items() if path is not None}
        self._server, self._client, self._expiries = server, client, expiries


def make_server_context(options: TlsOptions) -> ssl.SSLContext:
    """Return the context of a listener.

    Raises:
        OSError, ValueError: a file cannot be read or used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.client_ca_cert_path)
    _harden(context)
    # Without tickets each connection proves its certificate anew, also after the CA was changed; and there is nothing
    # in the way of a peer that reads nothing.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    if options.is_mutual:
        context.verify_mode = ssl.CERT_REQUIRED
    _load_pair(context, options.cert_path, options.key_path)
    return context


def make_client_context(options: TlsOptions) -> ssl.SSLContext:
    """Return the context of connections to listeners of peers.

    Raises:
        OSError, ValueError: a file cannot be read or used.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=options.ca_cert_path)
    _harden(context)
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    _load_pair(context, options.client_cert_path, options.client_key_path)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION


def _load_pair(context: ssl.SSLContext, cert: Path | None, key: Path | None) -> None:
    if cert is None or key is None:
        return
    check_key_file(key)
    context.load_cert_chain(cert, key, password=_no_password)


def _no_password() -> str:
    # Without one, OpenSSL would ask the terminal.
    raise ValueError("the key is encrypted, and there is nobody to ask for its password")


def _reason(exc: Exception, options: TlsOptions) -> str:
    """Say what is wrong with which file; the messages of ``ssl`` name none."""
    if isinstance(exc, ssl.SSLError):
        what = "a certificate and its key do not belong together" if "MISMATCH" in (exc.reason or "") else "no PEM"
        return f"{exc.reason or exc}: {what}, among {', '.join(map(str, options.files))}"
    if isinstance(exc, FileNotFoundError) and exc.filename is None:
        missing = [str(path) for path in options.files if not path.exists()]
        return f"no such file: {', '.join(missing)}"
    return str(exc)


def _fingerprint_of(files: tuple[Path, ...]) -> _Fingerprint:
    """What changes when a file is written, replaced, or a symbolic link on the way to it is turned."""
    marks: list[tuple[int, int, int, int] | None] = []
    for path in files:
        try:
            found = path.stat()
        except OSError:
            marks.append(None)
        else:
            marks.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(marks)
