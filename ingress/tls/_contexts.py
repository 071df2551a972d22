"""The two TLS contexts of a process, read again when their files change.

A certificate that is rotated serves from the next connection on; what is open stays open.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from .._rotation import Rotated, check_file
from ..errors import StartupError
from ._certificates import expiry_of_file
from ._options import TlsOptions, check_key_file

logger = logging.getLogger("ingress.tls")


@frozen
class _Loaded:
    server: ssl.SSLContext
    client: ssl.SSLContext
    expiries: Mapping[str, float]


class TlsContexts:
    """Makes the contexts of :class:`TlsOptions`; for one event loop.

    Raises:
        StartupError: a file cannot be used.
    """

    def __init__(self, options: TlsOptions) -> None:
        self.options = options
        self._files = Rotated(options.files, self._load, "certificates", logger)

    def server(self) -> ssl.SSLContext:
        """The context of connections that come in."""
        return self._files.current().server

    def client(self) -> ssl.SSLContext:
        """The context of connections that go out."""
        return self._files.current().client

    def expiries(self) -> Mapping[str, float]:
        """Unix times at which what was loaded expires, by what it is for; the words are fixed."""
        return self._files.loaded.expiries

    def reload(self) -> bool:
        """Read every file again, whether it changed or not; tell whether that worked. Raises nothing."""
        return self._files.reload()

    def _load(self) -> _Loaded:
        """Make both contexts; where one fails, neither is taken."""
        options = self.options
        paths = {"server": options.cert_path, "client": options.client_cert_path}
        paths |= {"ca": options.ca_cert_path, "client_ca": options.client_ca_cert_path}
        try:
            for path in options.files:
                with contextlib.suppress(FileNotFoundError):  # which is told with its purpose below
                    check_file(path)  # OpenSSL opens whatever it is, and a FIFO until somebody writes
            return _Loaded(
                make_server_context(options),
                make_client_context(options),
                {name: expiry_of_file(path) for name, path in paths.items() if path is not None},
            )
        except (OSError, ValueError) as exc:
            raise StartupError(f"TLS files cannot be used: {_reason(exc, options)}") from exc


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
    # Set by default up to Python 3.11.2: a stream that somebody cuts would look like one that has ended.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF


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
