"""The options of the verbs that call a worker: what is sent, to whom, and where the answer comes back to."""

from __future__ import annotations

from typing import Annotated, Any

from attrs import frozen
from cyclopts import Parameter

from ._options import parse_pairs
from ._payloads import read_instance_id, read_request
from ._worker_flags import check_seconds

DEFAULT_CALL_HOME = "127.0.0.1"

DEFAULT_DATA = "{}"


@Parameter(name="*")
@frozen
class CallerOptions:
    """What a call is made of."""

    data: Annotated[
        str,
        Parameter(
            name=["-d", "--data"],
            allow_leading_hyphen=True,
            help="The request: JSON, @FILE, or - for standard input.",
        ),
    ] = DEFAULT_DATA
    metadata: Annotated[
        list[str] | None,
        Parameter(
            name=["-H", "--metadata"],
            negative=(),
            help="KEY=VALUE that reaches the engine as context.metadata; repeatable.",
        ),
    ] = None
    direct: Annotated[str | None, Parameter(help="Call this instance and no other; ingress ls shows them.")] = None
    wait: Annotated[float, Parameter(validator=check_seconds, help="Seconds to wait for a worker to appear.")] = 0.0
    call_home: Annotated[
        str, Parameter(env_var="INGRESS_CALL_HOME", help="Address of this host that the worker can dial.")
    ] = DEFAULT_CALL_HOME

    def request(self) -> Any:
        """Read the request.

        Raises:
            CommandError: it is none.
        """
        return read_request(self.data)

    def pairs(self) -> dict[str, str]:
        """Read the metadata.

        Raises:
            CommandError: they are no pairs.
        """
        return parse_pairs(self.metadata, "-H")

    def instance_id(self) -> int | None:
        """Read which instance is to be called; None for any.

        Raises:
            CommandError: it is no instance's id.
        """
        return None if self.direct is None else read_instance_id(self.direct)


DEFAULT_CALLER = CallerOptions()
