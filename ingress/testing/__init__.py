"""Helpers and checks for tests of engines, shapes, codecs and callers; free of pytest.

``check_shape``, ``check_engine`` and ``check_codec`` are the checks; ``memory_worker`` runs a worker without sockets;
``ingress.testing.strategies`` has hypothesis strategies and alone needs the ``testing`` extra.
"""

from ._check_codec import check_codec as check_codec
from ._check_engine import check_engine as check_engine
from ._check_shape import check_shape as check_shape
from ._dialer import MemoryDialer as MemoryDialer
from ._faults import Faults as Faults
from ._faults import FaultyStream as FaultyStream
from ._faults import with_faults as with_faults
from ._memory import MemoryNetwork as MemoryNetwork
from ._memory import MemoryStream as MemoryStream
from ._memory import memory_worker as memory_worker
from ._outcome import Outcome as Outcome
from ._outcome import PropertyFailed as PropertyFailed
from ._payloads import bidirectional_payload as bidirectional_payload
from ._payloads import control_message as control_message
from ._payloads import unary_payload as unary_payload
from ._pipes import pipe_pair as pipe_pair
from ._pipes import pipes as pipes
from ._stream_payload import stream_payload as stream_payload
