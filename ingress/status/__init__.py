"""What a worker tells of itself: ``/health``, ``/live``, ``/metrics``, ``/progress``, and canaries."""

from ._exposition import exposition as exposition
from ._health import DRAINING as DRAINING
from ._health import STARTING as STARTING
from ._health import EndpointHealth as EndpointHealth
from ._health import HealthState as HealthState
from ._loop import DEFAULT_STALL_LIMIT as DEFAULT_STALL_LIMIT
from ._loop import watch_loop as watch_loop
from ._status import StatusOptions as StatusOptions
from ._status import WorkerStatus as WorkerStatus
