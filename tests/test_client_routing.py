"""Whose turn it is, and who is left alone for a while."""

from __future__ import annotations

from collections import Counter

import pytest

from ingress.client._routing import Router, Target, readable_targets
from ingress.errors import (
    DeserializationError,
    IngressError,
    MessageTooLarge,
    NoDialBack,
    NoInstances,
    NotAccepted,
    Overloaded,
    PluginError,
    RemoteError,
    StreamIncomplete,
    Unavailable,
)
from ingress.wire.messages import ErrorEvent
from ingress.wire.records import EndpointId, InstanceRecord

GENERATE = EndpointId("demo", "backend", "generate")


def record(instance_id: int, tcp: str = "127.0.0.1:7000/x", codec: str | None = None) -> InstanceRecord:
    return InstanceRecord(GENERATE, instance_id, {"tcp": tcp}, codec)


def targets(*instance_ids: int) -> list[Target]:
    return [Target.of(record(instance_id)) for instance_id in instance_ids]


def turns(router: Router, known: list[Target], count: int, now: float = 0.0) -> list[int]:
    return [router.pick(GENERATE, known, now=now).record.instance_id for _ in range(count)]


@pytest.mark.parametrize("tcp", ["a\x1b[31mb:9/x", "\x00:9/x", "\u2028:9/x", ":9/x", "a:0/x", "a:1\x1b/x"])
def test_a_record_that_names_no_host_cannot_be_called_and_its_complaint_can_be_printed(tcp: str) -> None:
    readable, (complaint,) = readable_targets([record(1, tcp)])
    assert readable == []
    assert complaint.isprintable()


def test_round_robin_takes_every_instance_in_turn() -> None:
    assert turns(Router(), targets(3, 1, 2), 7) == [1, 2, 3, 1, 2, 3, 1]


def test_round_robin_keeps_its_place_when_instances_come_and_go() -> None:
    router = Router()
    assert turns(router, targets(1, 2, 3), 2) == [1, 2]
    assert turns(router, targets(1, 3), 1) == [3]
    assert turns(router, targets(1, 2, 3, 4), 2) == [4, 1]


def test_endpoints_take_turns_independently() -> None:
    router, other = Router(), EndpointId("demo", "backend", "clear")
    assert turns(router, targets(1, 2), 1) == [1]
    assert router.pick(other, targets(1, 2), now=0).record.instance_id == 1


def test_random_routing_is_repeatable_by_its_seed_and_reaches_everyone() -> None:
    def choices(seed: int) -> list[int]:
        router = Router(seed=seed)
        return [router.pick(GENERATE, targets(1, 2, 3), now=0, routing="random").record.instance_id for _ in range(300)]

    assert choices(7) == choices(7) != choices(8)
    assert min(Counter(choices(7)).values()) > 60


def test_direct_routing_reaches_the_named_instance_even_when_it_is_set_aside() -> None:
    router, known = Router(), targets(1, 2)
    router.set_aside(known[1].record, Unavailable("x"), now=0)
    assert router.pick(GENERATE, known, now=0, routing="direct", instance_id=2).record.instance_id == 2


def test_direct_routing_to_an_unknown_instance_says_so() -> None:
    with pytest.raises(NoInstances, match=r"no instance ff of demo\.backend\.generate among 2 known"):
        Router().pick(GENERATE, targets(1, 2), now=0, routing="direct", instance_id=255)


@pytest.mark.parametrize(("routing", "instance_id"), [("direct", None), ("random", 1), ("nearest", None)])
def test_a_routing_that_cannot_be_is_a_value_error(routing: str, instance_id: int | None) -> None:
    with pytest.raises(ValueError, match="routing"):
        Router().pick(GENERATE, targets(1), now=0, routing=routing, instance_id=instance_id)  # type: ignore[arg-type]  # on purpose


def test_without_instances_there_is_nobody_to_call() -> None:
    with pytest.raises(NoInstances, match=r"no instance of demo\.backend\.generate is known"):
        Router().pick(GENERATE, [], now=0)


def test_a_failed_instance_gets_no_requests_for_five_seconds() -> None:
    router, known = Router(), targets(1, 2)
    assert router.set_aside(known[0].record, Unavailable("x"), now=100)
    assert turns(router, known, 3, now=104.9) == [2, 2, 2]
    assert turns(router, known, 2, now=105) == [1, 2]


def test_only_the_first_of_many_failures_is_news() -> None:
    router = Router()
    assert [router.set_aside(record(1), Unavailable("x"), now=now) for now in (0, 1, 5.9, 11)] == [
        True,
        False,
        False,
        True,
    ]


def test_set_aside_of_zero_turns_it_off() -> None:
    router, known = Router(set_aside=0), targets(1)
    assert not router.set_aside(known[0].record, Unavailable("x"), now=0)
    assert turns(router, known, 1) == [1]


def test_when_all_failed_the_error_names_the_seconds_left() -> None:
    router, known = Router(), targets(1, 2)
    router.set_aside(known[0].record, Unavailable("x"), now=0)
    router.set_aside(known[1].record, Overloaded("x"), now=2)
    with pytest.raises(NoInstances, match=r"all 2 instances of .* set aside, the first for 2\.0 s more"):
        router.pick(GENERATE, known, now=3)


def test_when_all_are_overloaded_the_error_is_overload() -> None:
    router, known = Router(), targets(1, 2)
    for target in known:
        router.set_aside(target.record, Overloaded("x"), now=0)
    with pytest.raises(Overloaded, match=r"all 2 instances .* overloaded, try again in 4\.0 s"):
        router.pick(GENERATE, known, now=1)


@pytest.mark.parametrize(
    "failure",
    [
        Unavailable("no ack"),
        NotAccepted("refused"),
        Overloaded("busy"),
        StreamIncomplete("cut"),
        *(ErrorEvent("m", kind, is_backend=False) for kind in ("CannotConnect", "Disconnected", "ConnectionTimeout")),
        ErrorEvent("m", "WorkerUnavailable", is_backend=False),
        ErrorEvent("m", "EngineShutdown"),
        ErrorEvent("m", "StreamIncomplete"),
    ],
    ids=str,
)
def test_failures_of_the_instance_set_it_aside(failure: ErrorEvent | IngressError) -> None:
    """Docs/wire.md §5.5, first row."""
    assert Router().set_aside(record(1), failure, now=0)


@pytest.mark.parametrize(
    "failure",
    [
        NoDialBack("nothing came"),
        RemoteError("bad request", kind="InvalidArgument"),
        DeserializationError("garbage"),
        MessageTooLarge("too large", size=2, limit=1),
        *(ErrorEvent("m", kind) for kind in ("Unknown", "InvalidArgument", "Cancelled", "CannotConnect")),
        ErrorEvent("m", "Unknown", is_backend=False),
        ErrorEvent("m", "ResourceExhausted", is_backend=False),
        ErrorEvent("m", "EngineShutdown", is_backend=False),
    ],
    ids=str,
)
def test_failures_of_the_request_do_not_set_the_instance_aside(failure: ErrorEvent | IngressError) -> None:
    """Docs/wire.md §5.5, second row."""
    assert not Router().set_aside(record(1), failure, now=0)


def test_a_record_names_address_path_and_codec() -> None:
    target = Target.of(record(1, "127.0.0.1:34873/51caf/demo/backend/generate", "msgpack"))
    assert target.address == ("127.0.0.1", 34873)
    assert target.path == "51caf/demo/backend/generate"
    assert target.codec.name == "msgpack"


@pytest.mark.parametrize(("tcp", "host"), [("[::1]:80/x", "::1"), ("fd00::1:80/x", "fd00::1"), ("h:80/x", "h")])
def test_addresses_are_split_at_their_last_colon(tcp: str, host: str) -> None:
    assert Target.of(record(1, tcp)).address == (host, 80)


def test_a_record_without_a_codec_means_json_and_the_caller_may_override_it() -> None:
    assert Target.of(record(1)).codec.name == "json"
    assert Target.of(record(1), "msgpack").codec.name == "msgpack"
    assert Target.of(record(1, codec="cbor"), "json").codec.name == "json"


@pytest.mark.parametrize("tcp", ["", "127.0.0.1:80", "127.0.0.1/x", ":80/x", "h:0/x", "h:65536/x", "h:8x/x", "h:٣/x"])
def test_a_record_without_a_usable_address_cannot_be_called(tcp: str) -> None:
    with pytest.raises(DeserializationError, match="record demo/backend/generate/1"):
        Target.of(record(1, tcp))


def test_a_record_with_an_unknown_codec_cannot_be_called() -> None:
    with pytest.raises(PluginError, match="'cbor'"):
        Target.of(record(1, codec="cbor"))


def test_unusable_records_are_left_out_with_their_complaints() -> None:
    usable, complaints = readable_targets([record(1), record(2, codec="cbor"), record(3, "nowhere")])
    assert [target.record.instance_id for target in usable] == [1]
    assert len(complaints) == 2
