"""The options of ``ingress serve`` about what a worker tells of itself; twins are Dynamo's where it has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from attrs import frozen
from cyclopts import Group, Parameter
from cyclopts.validators import Number

from ..status import DEFAULT_STALL_LIMIT, StatusOptions
from ..status._app import check_page_paths
from ._errors import usage
from ._options import check_endpoint
from ._payloads import read_request
from ._worker_flags import check_seconds

STATUS = Group("Status", sort_key=5)

# As of an env file: nobody probes with so much, and a device would never end.
MAX_CANARY = 1 << 20

_DEFAULT = StatusOptions()


def check_path(kind: object, value: str) -> None:
    """Raise ValueError unless the value is the path of a page."""
    if not value.startswith("/") or not value.isprintable() or any(sign in value for sign in " ?#{}"):
        raise ValueError("expected a path such as /health")


def _option(twin: str, text: str, **rest: Any) -> Parameter:
    return Parameter(env_var=twin, group=STATUS, help=text, **rest)


@Parameter(name="*")
@frozen
class StatusFlags:
    """The status server, the canaries and the watch over the event loop."""

    status_port: Annotated[
        int,
        _option(
            "DYN_SYSTEM_PORT",
            "Port of /health, /live, /metrics and /progress; 0 picks one, -1 is none.",
            validator=Number(gte=-1, lte=65535),
        ),
    ] = -1
    status_host: Annotated[str, _option("DYN_SYSTEM_HOST", "Address the status server listens on.")] = _DEFAULT.host
    health_path: Annotated[
        str, _option("DYN_SYSTEM_HEALTH_PATH", "Path of the readiness page.", validator=check_path)
    ] = _DEFAULT.health_path
    live_path: Annotated[str, _option("DYN_SYSTEM_LIVE_PATH", "Path of the liveness page.", validator=check_path)] = (
        _DEFAULT.live_path
    )
    compat_live: Annotated[
        bool,
        _option("INGRESS_COMPAT_LIVE", "Let the liveness page follow readiness, as released workers do.", negative=()),
    ] = False
    starting_health: Annotated[
        Literal["ready", "notready"],
        _option("DYN_SYSTEM_STARTING_HEALTH_STATUS", "What is said of endpoints while the worker starts."),
    ] = "notready"
    stall_threshold: Annotated[
        float,
        _option(
            "INGRESS_STALL_THRESHOLD",
            "Seconds without a chunk after which /progress says stalled.",
            validator=check_seconds,
        ),
    ] = _DEFAULT.stall_threshold
    canaries: Annotated[
        bool,
        _option("DYN_HEALTH_CHECK_ENABLED", "Send canaries to the engines that have one, in silence.", negative=()),
    ] = False
    canary: Annotated[
        list[str] | None,
        _option(
            "DYN_HEALTH_CHECK_PAYLOAD",
            "A canary's request: JSON or @FILE, or ENDPOINT=JSON for one of several; repeatable.",
            negative=(),
            # A variable holds one JSON document, in which white space separates nothing.
            env_var_split=lambda _kind, text, **_: [text],
        ),
    ] = None
    canary_wait: Annotated[
        float,
        _option("DYN_CANARY_WAIT_TIME", "Seconds of silence before a canary.", validator=check_seconds),
    ] = _DEFAULT.canary_wait
    canary_timeout: Annotated[
        float,
        _option(
            "DYN_HEALTH_CHECK_REQUEST_TIMEOUT",
            "Seconds an engine has to answer its canary.",
            validator=check_seconds,
        ),
    ] = _DEFAULT.canary_timeout
    loop_stall_limit: Annotated[
        float,
        _option(
            "INGRESS_LOOP_STALL_LIMIT",
            "Report what blocks the event loop for this many seconds; 0 is no watch.",
            validator=check_seconds,
        ),
    ] = DEFAULT_STALL_LIMIT

    def check(self) -> None:
        """Raise CommandError where pages hide one another."""
        try:
            check_page_paths(self.health_path, self.live_path)
        except ValueError as exc:
            what = f"--health-path {self.health_path} and --live-path {self.live_path} cannot be used"
            raise usage(what, str(exc), "a path of its own for each, such as /health and /live") from exc

    def options(self, endpoints: Sequence[str], namespace: str) -> StatusOptions:
        """Return what :class:`ingress.WorkerOptions` takes as ``status``.

        Raises:
            CommandError: a canary is no JSON, or for no endpoint that is served.
        """
        return StatusOptions(
            port=None if self.status_port < 0 else self.status_port,
            host=self.status_host,
            health_path=self.health_path,
            live_path=self.live_path,
            is_live_when_ready=self.compat_live,
            starts_ready=self.starting_health == "ready",
            stall_threshold=self.stall_threshold,
            canaries=self.canaries,
            canary_wait=self.canary_wait,
            canary_timeout=self.canary_timeout,
            health_check_payloads=read_canaries(self.canary or (), endpoints, namespace),
            loop_stall_limit=self.loop_stall_limit or None,
        )


def read_canaries(texts: Iterable[str], endpoints: Sequence[str], namespace: str) -> dict[str, Any]:
    """Read ``JSON``, which is for every endpoint, and ``ENDPOINT=JSON``, which is for one and wins.

    Raises:
        CommandError: no JSON, or an endpoint that is not served.
    """
    for_all: dict[str, Any] = {}
    for_one: dict[str, Any] = {}
    for text in texts:
        name, equals, data = text.partition("=")
        # No JSON document and no @FILE begins like an endpoint that is followed by an equals sign.
        if not equals or not name.replace(".", "").replace("-", "").replace("_", "").isalnum():
            for_all = dict.fromkeys(endpoints, read_request(text, "--canary", most=MAX_CANARY))
            continue
        endpoint = check_endpoint(name, namespace)
        if endpoint not in endpoints:
            raise usage(f"--canary {name}=… is for no endpoint of this worker", f"it serves {', '.join(endpoints)}", "")
        for_one[endpoint] = read_request(data, "--canary", most=MAX_CANARY)
    return for_all | for_one


DEFAULT_STATUS = StatusFlags()
