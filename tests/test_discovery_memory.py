"""Discovery in memory, and the set of instances that every view is made of."""

from __future__ import annotations

import trio
import trio.testing

from ingress.discovery import MemoryDiscovery
from ingress.discovery._instances import InstanceSet
from ingress.discovery._seldom import Seldom
from ingress.wire.records import EndpointId, InstanceRecord

GENERATE = EndpointId("demo", "backend", "generate")
CLEAR = EndpointId("demo", "backend", "clear")


def record(instance_id: int, endpoint_id: EndpointId = GENERATE, port: int = 1) -> InstanceRecord:
    return InstanceRecord(endpoint_id, instance_id, {"tcp": f"127.0.0.1:{port}/x"})


async def test_a_record_is_found_while_it_is_served_and_not_after() -> None:
    discovery = MemoryDiscovery()
    async with discovery.open_view() as view, trio.open_nursery() as nursery:
        assert list(view.instances()) == []
        await nursery.start(discovery.serve_records, [record(1), record(1, CLEAR)])
        assert list(view.instances(GENERATE)) == [record(1)]
        assert list(view.instances()) == [record(1, CLEAR), record(1)]
        nursery.cancel_scope.cancel()
    assert list(view.instances()) == []


async def test_waiting_ends_when_a_worker_comes_and_when_it_goes() -> None:
    discovery = MemoryDiscovery()
    async with discovery.open_view() as view, trio.open_nursery() as nursery:
        for expected in (1, 0):
            changed = trio.Event()

            async def wait(changed: trio.Event = changed) -> None:
                await view.wait_changed()
                changed.set()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not changed.is_set()
            if expected:
                scope = await nursery.start(serve, discovery)
            else:
                scope.cancel()
            await changed.wait()
            assert len(view.instances()) == expected


async def serve(
    discovery: MemoryDiscovery, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(discovery.serve_records, [record(1)])
            task_status.started(scope)


async def test_leaving_does_not_take_away_a_record_that_another_has_replaced() -> None:
    discovery = MemoryDiscovery()
    async with discovery.open_view() as view, trio.open_nursery() as nursery:
        first = await nursery.start(serve, discovery)
        await nursery.start(discovery.serve_records, [record(1, port=2)])
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert list(view.instances()) == [record(1, port=2)]
        nursery.cancel_scope.cancel()


def test_instances_are_sorted_by_id_whatever_the_order_they_came_in() -> None:
    found = InstanceSet()
    found.replace([record(2**63), record(7), record(11), record(7, CLEAR)])
    assert [r.instance_id for r in found.instances(GENERATE)] == [7, 11, 2**63]
    assert [r.instance_id for r in found.instances()] == [7, 7, 11, 2**63]
    assert list(found.instances(EndpointId("no", "such", "endpoint"))) == []


async def test_the_same_set_again_wakes_nobody(autojump_clock: trio.testing.MockClock) -> None:
    found = InstanceSet()
    found.replace([record(1), record(2)])
    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.wait_changed)
            await trio.testing.wait_all_tasks_blocked()
            found.replace([record(2), record(1)])
    assert scope.cancelled_caught


def test_k10_ten_thousand_instances_are_grouped_by_endpoint() -> None:
    found = InstanceSet()
    found.replace(record(i, GENERATE if i % 2 else CLEAR) for i in range(10_000))
    assert len(found.instances()) == 10_000
    assert len(found.instances(CLEAR)) == 5_000


def test_a_seldom_line_is_due_once_a_period_and_key() -> None:
    seldom = Seldom(60)
    assert [seldom.is_due("a", now) for now in (0, 59, 60, 61, 120)] == [True, False, True, False, True]
    assert seldom.is_due("b", 61)


def test_k02_the_number_of_remembered_names_is_bounded() -> None:
    seldom = Seldom(60, max_keys=2)
    assert [seldom.is_due(key, 0) for key in "abcd"] == [True, True, False, False]
    assert seldom.is_due("c", 60)
    assert not seldom.is_due("c", 61)
