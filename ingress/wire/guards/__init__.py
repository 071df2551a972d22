"""What a peer's bytes may cost, told before anything is decoded.

Each guard is linear in its input and allocates less than the decoder would. None of them says that its input is well
formed: that stays with the decoder. Source: docs/wire.md §3.3.
"""

from ._json import check_json_body as check_json_body
from ._json import exceeds_depth as exceeds_depth
from ._json import has_exponent as has_exponent
from ._limits import MAX_BODY_DEPTH as MAX_BODY_DEPTH
from ._limits import MAX_BODY_NODES as MAX_BODY_NODES
from ._msgpack_keys import MAX_NUMBER_KEYS as MAX_NUMBER_KEYS
from ._msgpack_keys import check_msgpack_keys as check_msgpack_keys
from ._msgpack_values import check_msgpack_size as check_msgpack_size
from ._msgpack_values import check_msgpack_value as check_msgpack_value
from ._steps import between_steps as between_steps
from ._steps import end_step as end_step
