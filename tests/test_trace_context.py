"""W3C Trace Context: what is read of a caller's headers, and that what breaks the rules is taken as absent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingress import Context
from ingress.wire.trace_context import MAX_TRACESTATE, TraceContext, clean_tracestate, read_trace_context

from .raw_caller import open_stage

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (PARENT, 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-fe", 0),
        (f"00-{TRACE}-{SPAN}-ff", 1),
        # Later versions may say more, after what this one says (§4.3).
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what the future\x00 holds", 1),
        (f"cc-{TRACE}-{SPAN}-01-", 1),
    ],
)
def test_a_valid_traceparent_is_read_and_passed_on_as_version_00(header: str, flags: int) -> None:
    found = read_trace_context({"traceparent": header})
    assert found is not None
    assert (found.trace_id, found.span_id, found.is_sampled) == (TRACE, SPAN, bool(flags))
    assert found.headers() == {"traceparent": f"00-{TRACE}-{SPAN}-{flags:02x}"}


@pytest.mark.parametrize(
    "header",
    [
        "",
        "junk",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"0x-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{'٠' * 32}-{SPAN}-01",
        "0" * 10_000,
    ],
)
def test_a_bad_traceparent_is_none_and_takes_its_tracestate_with_it(header: str) -> None:
    assert read_trace_context({"traceparent": header, "tracestate": "a=1"}) is None


def test_header_names_may_be_written_in_any_case() -> None:
    found = read_trace_context({"TraceParent": PARENT, "TRACESTATE": "a=1"})
    assert found == TraceContext(TRACE, SPAN, 1, "a=1")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("", ""),
        ("a=1", "a=1"),
        (" a=1 ,\tb=2,, c=x y ", "a=1,b=2,c=x y"),
        ("tenant@system=0", "tenant@system=0"),
        ("0tenant@system=0", "0tenant@system=0"),
        ("a_-*/9=!~", "a_-*/9=!~"),
        # what breaks the rules, as a whole
        ("a", ""),
        ("A=1", ""),
        ("9a=1", ""),
        ("a=", ""),
        ("a=b=c", ""),
        ("a=é", ""),
        ("a=1\n", ""),
        ("a=\x001", ""),
        ("a=1,a=2", ""),
        ("a=1,junk", ""),
        ("@b=1", ""),
        ("a@9=1", ""),
        (f"{'k' * 257}=1", ""),
        (f"a={'v' * 257}", ""),
        (",".join(f"k{i}=1" for i in range(33)), ""),
        ("x" * 100_000, ""),
        # what is too long, entry by entry
        (",".join(f"k{i}=1" for i in range(32)), ",".join(f"k{i}=1" for i in range(32))),
        (f"a={'v' * 256},b=1,c={'w' * 256}", "b=1"),
        (",".join(f"k{i}={'v' * 97}" for i in range(9)), ",".join(f"k{i}={'v' * 97}" for i in range(5))),
    ],
)
def test_a_tracestate_is_passed_on_clean_and_at_most_512_characters_long(text: str, cleaned: str) -> None:
    assert clean_tracestate(text) == cleaned
    assert len(cleaned) <= MAX_TRACESTATE


@given(
    st.dictionaries(
        st.sampled_from(["traceparent", "tracestate", "Traceparent", "x"]) | st.text(max_size=20),
        st.sampled_from([PARENT, "a=1,b=2"]) | st.text(max_size=600),
        max_size=40,
    )
)
@example({"traceparent": PARENT, "tracestate": ",".join(f"k{i}={'v' * 120}" for i in range(12))})
def test_whatever_comes_what_is_passed_on_is_valid_and_bounded(headers: dict[str, str]) -> None:
    found = read_trace_context(headers)
    if found is None:
        return
    onward = found.headers()
    assert read_trace_context(onward) == TraceContext(found.trace_id, found.span_id, found.flags & 1, found.tracestate)
    assert len("".join(onward.values())) <= 55 + MAX_TRACESTATE
    assert "".join(onward.values()).isascii()


async def test_engines_see_the_trace_and_cannot_change_it() -> None:
    seen: list[Context] = []

    async def engine(request: Any, context: Context) -> AsyncIterator[Any]:
        seen.append(context)
        context.trace_headers()["traceparent"] = "changed"
        with pytest.raises(TypeError):
            context.headers["traceparent"] = "changed"  # type: ignore[index]  # it is read-only, which is the point
        yield context.trace_headers()

    async with open_stage(engine) as stage:
        for headers in ({"traceparent": PARENT, "tracestate": "a=1, b=2"}, {"traceparent": "00-bad", "x": "y"}):
            assert await stage.ask(stage.caller.payload(), headers=headers) == ""
            response = await stage.caller.accept()
            said = await response.read_to_sentinel()
            assert said.is_whole and not said.errors
            if headers["traceparent"] == PARENT:
                assert said.items == [{"traceparent": PARENT, "tracestate": "a=1,b=2"}]
            else:
                assert said.items == [{}]
            await response.aclose()
    first, second = seen
    assert (first.trace_id, first.span_id) == (TRACE, SPAN)
    assert (second.trace_id, second.span_id, dict(second.headers)) == (None, None, {"traceparent": "00-bad", "x": "y"})
