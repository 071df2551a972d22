"""Hypothesis strategies for everything that crosses the wire; needs the ``testing`` extra.

>>> from hypothesis import given
>>> from ingress.testing import strategies as st
>>> @given(st.control_messages())
... def test_my_shape(control): ...
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis  # noqa: F401 - looked at first, so that its absence is told in our words
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        "ingress.testing.strategies needs hypothesis: pip install 'ingress-dispatch[testing]'", name="hypothesis"
    ) from exc

from ._strategies import ResponseConversation as ResponseConversation
from ._strategies import addresses as addresses
from ._strategies import annotated as annotated
from ._strategies import codec_names as codec_names
from ._strategies import codec_values as codec_values
from ._strategies import connection_infos as connection_infos
from ._strategies import control_messages as control_messages
from ._strategies import endpoint_ids as endpoint_ids
from ._strategies import error_events as error_events
from ._strategies import handshakes as handshakes
from ._strategies import hostile_bytes as hostile_bytes
from ._strategies import instance_ids as instance_ids
from ._strategies import instance_records as instance_records
from ._strategies import json_values as json_values
from ._strategies import names as names
from ._strategies import prologues as prologues
from ._strategies import request_frames as request_frames
from ._strategies import request_headers as request_headers
from ._strategies import request_ids as request_ids
from ._strategies import response_conversations as response_conversations
from ._strategies import scalars as scalars
from ._strategies import splits as splits
from ._strategies import stream_addresses as stream_addresses
from ._strategies import texts as texts
from ._strategies import two_part_messages as two_part_messages
