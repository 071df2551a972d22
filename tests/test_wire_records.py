"""Names and discovery records as bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.errors import DeserializationError
from ingress.testing import _strategies as wire
from ingress.wire.addresses import is_host
from ingress.wire.records import MAX_RECORD_SIZE, EndpointId, InstanceRecord, ModelRecord, check_name

RECORD = InstanceRecord(EndpointId("demo", "backend", "generate"), 0x10, {"tcp": "127.0.0.1:1/10/generate"})


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(RECORD.encode()) | fields).encode()


@given(wire.instance_records())
def test_a_record_comes_back_as_it_was_also_by_its_file_name(record: InstanceRecord) -> None:
    assert InstanceRecord.decode(record.encode(), file_name=record.file_name) == record


@given(wire.instance_records())
def test_a_record_is_written_in_the_order_of_released_workers(record: InstanceRecord) -> None:
    order = ["type", "component", "endpoint", "namespace", "instance_id", "transport", "device_type"]
    keys = list(json.loads(record.encode()))
    assert keys == [key for key in [*order, "request_plane_codec"] if key in keys]


@given(wire.instance_records())
def test_a_key_is_one_file_name_and_ends_in_the_id_in_lower_hex(record: InstanceRecord) -> None:
    assert "/" not in record.file_name
    assert record.key.endswith(f"/{record.instance_id:x}")
    assert record.tcp_target == (
        record.transport["tcp"].split("/", 1)[0],
        f"{record.instance_id:x}/{record.endpoint_id.endpoint}",
    )


@given(wire.endpoint_ids(dots=False))
def test_an_endpoint_without_dots_in_its_names_survives_dotted_notation(endpoint_id: EndpointId) -> None:
    assert EndpointId.parse(str(endpoint_id)) == EndpointId.parse(f"dyn://{endpoint_id}") == endpoint_id


@given(wire.names())
def test_every_name_the_strategy_makes_is_accepted(name: str) -> None:
    assert check_name(name, "namespace") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a%2Fb", "a b", "a\n", "\x00", "é", "n" * 129, "n" * 300, "a\\b"]
)
def test_k04_what_could_leave_its_directory_or_label_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"namespace .* must match"):
        check_name(name, "namespace")
    with pytest.raises(DeserializationError, match="must match"):
        InstanceRecord.decode(changed(namespace=name))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no json",
        b"[]",
        b"null",
        b'{"type":"Endpoint"}',
        changed(instance_id="16"),
        changed(instance_id=-1),
        changed(instance_id=2**64),
        changed(transport="tcp"),
        changed(type="Model"),
        changed(namespace=7),
        b"[" * 100_000,
        b'{"a":' * 12_000,
        changed(padding="x" * MAX_RECORD_SIZE),
        changed(transport={"tcp": "x" * 5000}),
        changed(transport={"x" * 5000: "y"}),
        changed(request_plane_codec="x" * 65),
        changed(device_type="x" * 65),
        changed(type="x" * 60_000),
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_k02_what_is_no_record_is_a_deserialization_error(raw: bytes) -> None:
    with pytest.raises(DeserializationError, match="discovery record") as caught:
        InstanceRecord.decode(raw)
    assert len(str(caught.value)) < 300


# None of these is the name or the address of a host; some would be shown in errors, others stop a resolver.
NO_HOSTS = [
    "a\x1b[31mb", "", "a\nforged", "\x00", "\x9b", "\u202e", "\u2028", "127.0.0.1 ", "a..b", ".a", "-a", "a/b", "é",
    "x" * 64, "x." * 127 + "x", "[::1", "::1]", "[]", "[127.0.0.1]", "[::g]", "::1%", "::1%\x1b", "::1%" + "x" * 16,
]  # fmt: skip
HOSTS = [
    "10", "127.0.0.1", "::1", "[::1]", "[fe80::1%eth0]", "fd00::5", "worker-0.workers.svc.cluster.local", "a_b", "a.",
]  # fmt: skip


@pytest.mark.parametrize("host", [host for host in NO_HOSTS if "/" not in host])
def test_k02_a_record_whose_address_names_no_host_is_no_record(host: str) -> None:
    with pytest.raises(DeserializationError, match="names no host") as caught:
        InstanceRecord.decode(changed(transport={"tcp": f"{host}:9/x"}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("host", HOSTS)
def test_names_and_addresses_of_hosts_may_stand_in_a_record(host: str) -> None:
    assert is_host(host)
    record = InstanceRecord.decode(changed(transport={"tcp": f"{host}:9/any \x1b path"}))
    assert record.tcp_target == (f"{host}:9", "any \x1b path")


@pytest.mark.parametrize("host", NO_HOSTS)
def test_what_is_no_host_is_told_from_hosts(host: str) -> None:
    assert not is_host(host)


@given(st.binary(max_size=100) | wire.instance_records().map(lambda record: record.encode()[:-7]))
def test_k02_garbage_gives_a_record_or_a_deserialization_error(raw: bytes) -> None:
    with pytest.raises(DeserializationError):
        InstanceRecord.decode(raw)


def test_unknown_fields_and_foreign_transports_are_ignored() -> None:
    raw = changed(later=[{"x": 1}], transport={"tcp": RECORD.transport["tcp"], "nats": {"subject": "s"}})
    assert InstanceRecord.decode(raw) == RECORD


def test_a_file_name_that_says_another_key_is_refused() -> None:
    with pytest.raises(DeserializationError, match="holds key 'demo/backend/generate/10'"):
        InstanceRecord.decode(RECORD.encode(), file_name="demo%2Fbackend%2Fgenerate%2F11")


@pytest.mark.parametrize("transport", [{}, {"tcp": "127.0.0.1:1"}, {"nats": "s"}])
def test_a_record_without_a_tcp_path_has_no_tcp_target(transport: dict[str, str]) -> None:
    record = InstanceRecord.decode(changed(transport=transport))
    with pytest.raises(DeserializationError, match="no tcp transport of the form host:port/path"):
        _ = record.tcp_target


# -- model cards -----------------------------------------------------------------------------------------------------

CARD = {"display_name": "m", "model_type": "Chat | Completions", "context_length": 2048}


@given(wire.instance_records())
def test_a_model_has_the_key_of_its_instance_in_another_bucket(record: InstanceRecord) -> None:
    model = ModelRecord(record.endpoint_id, record.instance_id, CARD)
    assert (model.key, model.file_name) == (record.key, record.file_name)
    assert (record.bucket, model.bucket) == ("instances", "mdc")
    assert ModelRecord.decode(model.encode(), file_name=model.file_name) == model
    assert list(json.loads(model.encode())) == [
        *("type", "namespace", "component", "endpoint", "instance_id", "card_json"),
    ]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"type": "Endpoint"}, "expected type Model"),
        ({"card_json": []}, "Expected `object`, got `array`"),
        (
            {"card_json": {"x": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}},
            "nested deeper than",
        ),
        ({"card_json": {"x": "x" * MAX_RECORD_SIZE}}, "exceeds"),
        ({"instance_id": 2**64}, "no u64"),
        ({"namespace": ".."}, "namespace"),
    ],
)
def test_what_is_no_model_record_is_refused(fields: dict[str, Any], complaint: str) -> None:
    good = json.loads(ModelRecord(EndpointId("demo", "backend", "generate"), 7, CARD).encode())
    with pytest.raises(DeserializationError, match=complaint):
        ModelRecord.decode(json.dumps(good | fields).encode())


def test_an_instance_is_no_model_and_a_model_no_instance() -> None:
    model = ModelRecord(RECORD.endpoint_id, RECORD.instance_id, CARD)
    with pytest.raises(DeserializationError):
        ModelRecord.decode(RECORD.encode())
    with pytest.raises(DeserializationError):
        InstanceRecord.decode(model.encode())
