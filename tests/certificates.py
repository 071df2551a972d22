"""Certificates for tests, made by trustme, and the options that name them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trustme

from ingress.tls import TlsOptions


class Authority:
    """A CA of a test, and the files of those it vouches for."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._ca = trustme.CA(organization_name=name)
        self.path = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def issue(self, name: str, *names: str, expired: bool = False) -> tuple[Path, Path]:
        """Write ``name.pem`` and ``name.key``, of 127.0.0.1 where no names are given; in place, as a rotation does."""
        until = datetime(2020, 1, 1, tzinfo=UTC) if expired else None
        issued = self._ca.issue_cert(*(names or ("127.0.0.1",)), not_after=until)
        cert, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        for path, data in (
            (cert, b"".join(pem.bytes() for pem in issued.cert_chain_pems)),
            (key, issued.private_key_pem.bytes()),
        ):
            fresh = path.with_name(f".{path.name}")
            fresh.write_bytes(data)
            fresh.chmod(0o600)
            fresh.replace(path)
        return cert, key

    def options(self, name: str = "server", *names: str, mutual: bool = False, **more: Any) -> TlsOptions:
        """Issue a certificate and return options that use it; with ``mutual``, both ways."""
        cert, key = self.issue(name, *names)
        if mutual:
            client_cert, client_key = self.issue(f"{name}-client", *(names or ("127.0.0.1",)))
            more = {
                "client_ca_cert_path": self.path,
                "client_cert_path": client_cert,
                "client_key_path": client_key,
                **more,
            }
        return TlsOptions(**{"cert_path": cert, "key_path": key, "ca_cert_path": self.path, **more})

    def environment(self, options: TlsOptions) -> dict[str, str]:
        """The variables that say the same."""
        names = ("cert_path", "key_path", "ca_cert_path", "client_ca_cert_path", "client_cert_path", "client_key_path")
        return {
            f"DYN_TCP_TLS_{name.upper()}": str(path) for name in names if (path := getattr(options, name)) is not None
        }
