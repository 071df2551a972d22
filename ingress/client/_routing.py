"""Which instance gets the next request, and which ones are left alone for a while. No I/O, no clock.

Source: docs/wire.md §5 for what sets an instance aside, §3.2 for the codec.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Literal, cast, get_args

from attrs import frozen

from ..errors import DeserializationError, IngressError, NoDialBack, NoInstances, Overloaded, PluginError, Unavailable
from ..wire.addresses import is_host
from ..wire.codec import PayloadCodec, codec_named
from ..wire.messages import CodecName, ErrorEvent
from ..wire.records import EndpointId, InstanceRecord

Routing = Literal["round_robin", "random", "direct"]

# What released callers do, and the name of their knob is DYN_RUNTIME_INHIBITED_DURATION_SECS.
DEFAULT_SET_ASIDE = 5.0

_TOP_LEVEL_KINDS = frozenset({"CannotConnect", "Disconnected", "ConnectionTimeout", "WorkerUnavailable"})
_BACKEND_KINDS = frozenset({"EngineShutdown", "StreamIncomplete"})


@frozen
class Target:
    """A record read as something that can be called."""

    record: InstanceRecord
    address: tuple[str, int]
    path: str
    codec_name: CodecName

    @property
    def codec(self) -> PayloadCodec:
        return codec_named(self.codec_name)

    def __str__(self) -> str:
        return f"instance {self.record.instance_id:x} of {self.record.endpoint_id}"

    @classmethod
    def of(cls, record: InstanceRecord, codec: str | None = None) -> Target:
        """Read a record; ``codec`` overrides the one it names.

        Raises:
            DeserializationError: no TCP address in it.
            PluginError: a codec we do not have.
        """
        address, path = record.tcp_target
        host, _, port = address.rpartition(":")
        # Records that a file did not hold have not been read with the eyes of a stranger.
        if not is_host(host) or not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
            raise DeserializationError(f"record {record.key}: {address[:100]!r} is no host:port")
        name = codec_named(codec or record.request_plane_codec or "json").name
        host = host.removeprefix("[").removesuffix("]")
        return cls(record, (host, int(port)), path, cast(CodecName, name))


def readable_targets(records: Iterable[InstanceRecord], codec: str | None = None) -> tuple[list[Target], list[str]]:
    """Return the records that can be called, and for the others why not."""
    targets: list[Target] = []
    complaints: list[str] = []
    for record in records:
        try:
            targets.append(Target.of(record, codec))
        except (DeserializationError, PluginError) as exc:
            complaints.append(str(exc))
    return targets, complaints


def blames_instance(failure: ErrorEvent | IngressError) -> bool:
    """Tell whether a failure is the instance's, which other requests would meet too, or the request's own."""
    match failure:
        case ErrorEvent():
            return failure.kind in (_BACKEND_KINDS if failure.is_backend else _TOP_LEVEL_KINDS)
        case NoInstances() | NoDialBack():
            # Released workers fall silent on a bad body, so a missing dial-back tells nothing about the instance.
            return False
        case Overloaded() | Unavailable():
            return True
        case _:
            return False


@frozen
class _Aside:
    until: float
    is_overload: bool


class Router:
    """The choices of one client; ``now`` is always the caller's clock."""

    def __init__(self, *, set_aside: float = DEFAULT_SET_ASIDE, seed: int | None = None) -> None:
        self._set_aside = set_aside
        self._random = random.Random(seed)  # noqa: S311 - spreads load, guards nothing
        self._last: dict[EndpointId, int] = {}
        self._aside: dict[str, _Aside] = {}

    def pick(
        self,
        endpoint_id: EndpointId,
        targets: Sequence[Target],
        *,
        now: float,
        routing: Routing = "round_robin",
        instance_id: int | None = None,
    ) -> Target:
        """Choose a target.

        Direct routing reaches an instance that is set aside, too: whoever names one has no other to fall back to.

        Raises:
            NoInstances: there is none, or all are set aside.
            Overloaded: all are set aside because they were overloaded.
            ValueError: an unknown routing, or an instance id without direct routing, or the reverse.
        """
        if routing not in get_args(Routing):
            raise ValueError(f"unknown routing {routing!r}; known: {', '.join(get_args(Routing))}")
        if (routing == "direct") != (instance_id is not None):
            raise ValueError("direct routing and instance_id come together or not at all")
        if instance_id is not None:
            return self._named(endpoint_id, targets, instance_id)
        ready = [target for target in targets if not self._is_set_aside(target, now)]
        if not ready:
            raise self._nobody(endpoint_id, targets, now)
        if routing == "random":
            return self._random.choice(ready)
        return self._next_in_turn(endpoint_id, ready)

    def set_aside(self, record: InstanceRecord, failure: ErrorEvent | IngressError, *, now: float) -> bool:
        """Leave the instance alone for a while if the failure blames it, and tell whether that is news."""
        if not self._set_aside or not blames_instance(failure):
            return False
        self._aside = {key: aside for key, aside in self._aside.items() if now < aside.until}
        is_news = record.key not in self._aside
        self._aside[record.key] = _Aside(now + self._set_aside, isinstance(failure, Overloaded))
        return is_news

    def _is_set_aside(self, target: Target, now: float) -> bool:
        aside = self._aside.get(target.record.key)
        return aside is not None and now < aside.until

    def _next_in_turn(self, endpoint_id: EndpointId, ready: Sequence[Target]) -> Target:
        # The next higher id after the last one used: instances that come and go do not disturb the turn of others.
        last = self._last.get(endpoint_id, -1)
        chosen = min(ready, key=lambda target: (target.record.instance_id <= last, target.record.instance_id))
        self._last[endpoint_id] = chosen.record.instance_id
        return chosen

    def _named(self, endpoint_id: EndpointId, targets: Sequence[Target], instance_id: int) -> Target:
        for target in targets:
            if target.record.instance_id == instance_id:
                return target
        raise NoInstances(f"no instance {instance_id:x} of {endpoint_id} among {len(targets)} known")

    def _nobody(self, endpoint_id: EndpointId, targets: Sequence[Target], now: float) -> IngressError:
        if not targets:
            return NoInstances(f"no instance of {endpoint_id} is known")
        asides = [self._aside[target.record.key] for target in targets]
        wait = min(aside.until for aside in asides) - now
        if all(aside.is_overload for aside in asides):
            return Overloaded(
                f"all {len(targets)} instances of {endpoint_id} are overloaded, try again in {wait:.1f} s"
            )
        return NoInstances(
            f"all {len(targets)} instances of {endpoint_id} failed and are set aside, the first for {wait:.1f} s more"
        )
