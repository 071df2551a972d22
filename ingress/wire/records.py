"""Names and discovery records.

A worker announces one record an endpoint under the key ``namespace/component/endpoint/<instance id, lower hex>`` in the
bucket of the instances. What shall appear as a model has a second record, under the same key in the bucket of the model
cards.  Source: docs/wire.md §7, captures ``discovery-record-*``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import msgspec
from attrs import field, frozen

from ..errors import DeserializationError
from .addresses import is_host
from .messages import exceeds_depth

# A record has some 250 bytes, and one of a model some 2,000; what is larger is neither.
MAX_RECORD_SIZE = 64 * 1024
MAX_RECORD_DEPTH = 32

# What stays of an instance's record in a caller's memory; real ones have some 150 bytes of it.
MAX_TRANSPORT_SIZE = 4096
MAX_WORD_SIZE = 64

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def check_name(name: str, what: str) -> str:
    """Return the name if it may stand in keys, paths and labels.

    Raises:
        ValueError: it may not; percent-quoting would leave the dots of ``..`` alone, so this comes before quoting.
    """
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{what} {name[:140]!r} must match [A-Za-z0-9_-][A-Za-z0-9._-]{{0,127}}")
    return name


@frozen
class EndpointId:
    """``namespace.component.endpoint``."""

    namespace: str = field()
    component: str = field()
    endpoint: str = field()

    def __attrs_post_init__(self) -> None:
        check_name(self.namespace, "namespace")
        check_name(self.component, "component")
        check_name(self.endpoint, "endpoint")

    @classmethod
    def parse(cls, text: str, *, namespace: str | None = None) -> EndpointId:
        """Read ``ns.comp.ep`` or ``dyn://ns.comp.ep``; with ``namespace`` also ``comp.ep`` and ``ep``.

        Raises:
            ValueError: the text has other than three parts, or a part is no name.
        """
        parts = text.removeprefix("dyn://").split(".")
        if namespace is not None and len(parts) < 3:
            parts = [namespace, *(["backend"] if len(parts) == 1 else []), *parts]
        if len(parts) != 3:
            raise ValueError(f"endpoint {text!r} must be namespace.component.endpoint, e.g. demo.backend.generate")
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.namespace}.{self.component}.{self.endpoint}"


@frozen
class InstanceRecord:
    """One endpoint of one worker process, as discovery announces it."""

    bucket: ClassVar[str] = "instances"
    """What comes before the key in every store, after ``v1/``."""

    endpoint_id: EndpointId
    instance_id: int
    """Random u64, one a process, shared by its endpoints."""

    transport: Mapping[str, str]
    """``{"tcp": "host:port/path"}``; the path is an opaque string that callers echo."""

    request_plane_codec: str | None = None
    """The codec callers from 1.4.2 on use; None leaves the field out, which means JSON."""

    device_type: str | None = None
    """Written by released workers from 1.1.1 on; read by nobody."""

    @property
    def key(self) -> str:
        return _key(self.endpoint_id, self.instance_id)

    @property
    def file_name(self) -> str:
        """The key as one file name."""
        return quote(self.key, safe="")

    @property
    def tcp_target(self) -> tuple[str, str]:
        """``("host:port", "path")`` of a TCP transport.

        Raises:
            DeserializationError: the record has no such transport.
        """
        address, slash, path = self.transport.get("tcp", "").partition("/")
        if not slash:
            raise DeserializationError(f"record {self.key}: no tcp transport of the form host:port/path")
        return address, path

    def encode(self) -> bytes:
        """Return the record's JSON, keys in the order of a released worker."""
        wire: dict[str, Any] = {
            "type": "Endpoint",
            "component": self.endpoint_id.component,
            "endpoint": self.endpoint_id.endpoint,
            "namespace": self.endpoint_id.namespace,
            "instance_id": self.instance_id,
            "transport": dict(self.transport),
        }
        if self.device_type is not None:
            wire["device_type"] = self.device_type
        if self.request_plane_codec is not None:
            wire["request_plane_codec"] = self.request_plane_codec
        return msgspec.json.encode(wire)

    @classmethod
    def decode(cls, raw: bytes, *, file_name: str | None = None) -> InstanceRecord:
        """Read a record, tolerant of fields of other versions.

        Args:
            file_name: where it came from; the key in the name must equal the one in the content.

        Raises:
            DeserializationError: not a record of an endpoint, a bad name, or a name that does not match.
        """
        _check_size(raw)
        try:
            wire = _RECORD.decode(raw)
            record = cls(
                EndpointId(wire.namespace, wire.component, wire.endpoint),
                wire.instance_id,
                _checked_transport(wire.transport),
                wire.request_plane_codec,
                wire.device_type,
            )
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise DeserializationError(f"discovery record: {exc}") from exc
        for word in (wire.request_plane_codec, wire.device_type):
            if word is not None and len(word) > MAX_WORD_SIZE:
                raise DeserializationError(f"discovery record: {word[:20]!r}… exceeds {MAX_WORD_SIZE} characters")
        _check_identity(wire.type, "Endpoint", record, file_name)
        return record


@frozen
class ModelRecord:
    """The model card of one endpoint of one worker process, as discovery announces it beside the instance."""

    bucket: ClassVar[str] = "mdc"

    endpoint_id: EndpointId
    instance_id: int
    """That of the instance: both records have the same key."""

    card: Mapping[str, Any]
    """The ``card_json``; :class:`ingress.models.ModelCard` knows what stands in it."""

    @property
    def key(self) -> str:
        return _key(self.endpoint_id, self.instance_id)

    @property
    def file_name(self) -> str:
        """The key as one file name."""
        return quote(self.key, safe="")

    def encode(self) -> bytes:
        """Return the record's JSON, keys in the order of a released worker."""
        wire = {
            "type": "Model",
            "namespace": self.endpoint_id.namespace,
            "component": self.endpoint_id.component,
            "endpoint": self.endpoint_id.endpoint,
            "instance_id": self.instance_id,
            "card_json": dict(self.card),
        }
        return msgspec.json.encode(wire)

    @classmethod
    def decode(cls, raw: bytes, *, file_name: str | None = None) -> ModelRecord:
        """Read a record, tolerant of fields of other versions.

        Args:
            file_name: where it came from; the key in the name must equal the one in the content.

        Raises:
            DeserializationError: not a record of a model, a bad name, or a name that does not match.
        """
        _check_size(raw)
        try:
            wire = _MODEL_RECORD.decode(raw)
            record = cls(EndpointId(wire.namespace, wire.component, wire.endpoint), wire.instance_id, wire.card_json)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise DeserializationError(f"discovery record: {exc}") from exc
        _check_identity(wire.type, "Model", record, file_name)
        return record


DiscoveryRecord = InstanceRecord | ModelRecord
"""What a worker announces: its instances first, then what makes models of them."""


def _key(name: EndpointId, instance_id: int) -> str:
    return f"{name.namespace}/{name.component}/{name.endpoint}/{instance_id:x}"


def _check_size(raw: bytes) -> None:
    if len(raw) > MAX_RECORD_SIZE:
        raise DeserializationError(f"discovery record of {len(raw)} bytes exceeds {MAX_RECORD_SIZE} bytes")
    if exceeds_depth(raw, MAX_RECORD_DEPTH):
        raise DeserializationError(f"discovery record nested deeper than {MAX_RECORD_DEPTH} levels")


def _checked_transport(transport: Mapping[str, Any]) -> dict[str, str]:
    kept = {kind: address for kind, address in transport.items() if isinstance(address, str)}
    size = sum(len(kind) + len(address) for kind, address in kept.items())
    if size > MAX_TRANSPORT_SIZE:
        raise ValueError(f"transport of {size} characters exceeds {MAX_TRANSPORT_SIZE}")
    if (target := kept.get("tcp")) is not None:
        address = target.partition("/")[0]
        host, colon, _ = address.rpartition(":")
        if not is_host(host if colon else address):
            raise ValueError(f"tcp address {address[:100]!r} names no host")
    return kept


def _check_identity(kind: str, expected: str, record: DiscoveryRecord, file_name: str | None) -> None:
    if kind != expected:
        raise DeserializationError(f"discovery record: expected type {expected}, got {kind[:40]!r}")
    if not 0 <= record.instance_id < 2**64:
        raise DeserializationError(f"discovery record: instance id {record.instance_id} is no u64")
    if file_name is not None and unquote(file_name) != record.key:
        raise DeserializationError(f"discovery record: file {file_name[:300]!r} holds key {record.key!r}")


@frozen
class _WireRecord:
    namespace: str
    component: str
    endpoint: str
    instance_id: int
    transport: dict[str, Any]
    type: str = "Endpoint"
    request_plane_codec: str | None = None
    device_type: str | None = None


_RECORD = msgspec.json.Decoder(_WireRecord)


@frozen
class _WireModelRecord:
    namespace: str
    component: str
    endpoint: str
    instance_id: int
    card_json: dict[str, Any]
    type: str = "Model"


_MODEL_RECORD = msgspec.json.Decoder(_WireModelRecord)
