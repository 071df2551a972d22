"""The options of TLS and of request tokens, for workers and callers; names and twins are Dynamo's where it has them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

from attrs import frozen
from cyclopts import Group, Parameter

from .._token import TokenKeys
from ..tls import DEFAULT_HANDSHAKE_TIMEOUT, PREFIX, TlsOptions
from ._errors import usage

SECURITY = Group("Security", sort_key=5)

# The keys themselves; never a flag, for command lines are seen by everybody on the machine.
TOKEN_KEYS_VARIABLE = "INGRESS_TOKEN_KEYS"  # noqa: S105 - the name of a variable


def _check_timeout(kind: object, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise ValueError("expected seconds, more than 0")


def _tls(suffix: str, text: str) -> Parameter:
    return Parameter(env_var=PREFIX + suffix, group=SECURITY, show_default=False, help=text)


@Parameter(name="*")
@frozen
class SecurityOptions:
    """TLS on both planes, and request tokens; off by default."""

    tcp_tls_cert_path: Annotated[
        Path | None, _tls("CERT_PATH", "PEM certificates of our listener; with its key: TLS.")
    ] = None
    tcp_tls_key_path: Annotated[Path | None, _tls("KEY_PATH", "PEM key of our listener, readable by no others.")] = None
    tcp_tls_ca_cert_path: Annotated[
        Path | None, _tls("CA_CERT_PATH", "PEM certificates that the peers we connect to must chain to.")
    ] = None
    tcp_tls_client_ca_cert_path: Annotated[
        Path | None, _tls("CLIENT_CA_CERT_PATH", "The same of peers that connect to us, who then need one: mTLS.")
    ] = None
    tcp_tls_client_cert_path: Annotated[
        Path | None, _tls("CLIENT_CERT_PATH", "PEM certificates that we show where we connect.")
    ] = None
    tcp_tls_client_key_path: Annotated[Path | None, _tls("CLIENT_KEY_PATH", "PEM key of those.")] = None
    tcp_tls_server_name: Annotated[
        str | None, _tls("SERVER_NAME", "Name that certificates must bear, where not the address.")
    ] = None
    tcp_tls_handshake_timeout: Annotated[
        float,
        Parameter(
            env_var=PREFIX + "HANDSHAKE_TIMEOUT_SECS",
            group=SECURITY,
            validator=_check_timeout,
            help="Seconds for a TLS handshake.",
        ),
    ] = DEFAULT_HANDSHAKE_TIMEOUT
    tcp_tls_allowed_name: Annotated[
        list[str] | None,
        Parameter(
            env_var="INGRESS_TLS_ALLOWED_NAMES",
            group=SECURITY,
            negative=(),
            help="Name in a client's certificate that is let in, and no other; repeatable.",
        ),
    ] = None
    tcp_tls_insecure: Annotated[
        bool,
        Parameter(
            group=SECURITY,
            negative=(),
            show_default=False,
            help="Connect without checking whom to; the variable alone is refused.",
        ),
    ] = False
    token_keys_path: Annotated[
        Path | None,
        Parameter(
            env_var="INGRESS_TOKEN_KEYS_PATH",
            group=SECURITY,
            show_default=False,
            help=f"File of ID:HEX keys for request tokens; or the keys in {TOKEN_KEYS_VARIABLE}.",
        ),
    ] = None

    def tls(self) -> TlsOptions | None:
        """Return what is configured of TLS, None where nothing is.

        Raises:
            StartupError: it does not fit together.
        """
        environ = {
            PREFIX + name.upper(): str(value)
            for name, value in {
                "cert_path": self.tcp_tls_cert_path,
                "key_path": self.tcp_tls_key_path,
                "ca_cert_path": self.tcp_tls_ca_cert_path,
                "client_ca_cert_path": self.tcp_tls_client_ca_cert_path,
                "client_cert_path": self.tcp_tls_client_cert_path,
                "client_key_path": self.tcp_tls_client_key_path,
                "server_name": self.tcp_tls_server_name,
                "handshake_timeout_secs": self.tcp_tls_handshake_timeout,
                "insecure": os.environ.get(f"{PREFIX}INSECURE"),
            }.items()
            if value not in (None, Path())
        }
        return TlsOptions.from_environ(
            environ, insecure=self.tcp_tls_insecure, allowed_names=self.tcp_tls_allowed_name or ()
        )

    def token_keys(self) -> TokenKeys | None:
        """Return the keys of request tokens, None where there are none.

        Raises:
            CommandError: they are given twice.
            StartupError: they cannot be read.
        """
        text = os.environ.get(TOKEN_KEYS_VARIABLE)
        if self.token_keys_path is not None and text:
            raise usage(
                "token keys are given twice",
                f"as a file by --token-keys-path, and in {TOKEN_KEYS_VARIABLE}",
                f"unset {TOKEN_KEYS_VARIABLE}",
            )
        if self.token_keys_path is not None:
            return TokenKeys.read(self.token_keys_path)
        return TokenKeys.parse(text) if text else None


DEFAULT_SECURITY = SecurityOptions()
