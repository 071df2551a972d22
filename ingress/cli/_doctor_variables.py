"""The check-up of the environment: which variables are ours, which are somebody else's, and which are misspelt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ._errors import nearest
from ._findings import Finding, ok, warn

TOPIC = "variables"

# Read outside of the command's options: by the logging, before anything else.
OF_LOGGING = ("DYN_LOG", "DYN_LOGGING_JSONL", "DYN_LOG_USE_LOCAL_TZ", "DYN_SDK_DISABLE_ANSI_LOGGING")

# Read beside the options that they belong to: secrets have no flag, and a dangerous switch needs more than a variable.
OF_SECURITY = ("DYN_TCP_TLS_INSECURE", "INGRESS_TOKEN_KEYS")

# Told by the parent of several processes to each of them, and no option.
OF_PROCESSES = ("INGRESS_PROCESS",)

DEPRECATED = {
    "DYN_SYSTEM_ENABLED": "DYN_SYSTEM_PORT alone decides",
    "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": "every endpoint counts",
}

# Dynamo's own names that mean something to its callers, frontends and other planes, and nothing to this worker
# (docs/wire.md §11). They are no mistakes, and misspelt names must not be taken for them.
ELSEWHERE = (
    "DYN_EVENT_PLANE",
    "DYN_HTTP_PORT",
    "DYN_RESPONSE_PLANE",
    "DYN_RUNTIME_INHIBITED_DURATION_SECS",
    "DYN_TCP_CHANNEL_BUFFER",
    "DYN_TCP_CONNECT_TIMEOUT",
    "DYN_TCP_GLOBAL_CONNECT_LIMIT",
    "DYN_TCP_HOST_IDLE_TTL_SECS",
    "DYN_TCP_LISTEN_BACKLOG",
    "DYN_TCP_POOL_SIZE",
    "DYN_TCP_REQUEST_TIMEOUT",
    "DYN_TCP_RESPONSE_STREAM_HOST",
    "DYN_TCP_RESPONSE_STREAM_PORT",
    "DYN_TCP_SHRINK_MESSAGE_SIZE",
    "DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT",
)

_PREFIXES = ("DYN_", "INGRESS_")


def names_we_read() -> frozenset[str]:
    """Return the variables that stand behind options of any verb, and those of the logging."""
    from ._app import VERBS, make_app

    app = make_app()
    names = {*OF_LOGGING, *OF_SECURITY, *OF_PROCESSES}
    for verb in VERBS:
        for argument in app[verb].assemble_argument_collection():
            names.update(argument.parameter.env_var or ())
    return frozenset(names)


def check_variables(environ: Mapping[str, str], known: Iterable[str]) -> list[Finding]:
    """Sort the ``DYN_`` and ``INGRESS_`` variables; values are not shown, for one may be a secret."""
    known = frozenset(known)
    read, elsewhere, findings = [], [], []
    for name in sorted(name for name in environ if name.startswith(_PREFIXES)):
        if name in known:
            read.append(name)
        elif name in DEPRECATED:
            findings.append(warn(TOPIC, f"{name} is deprecated and does nothing", f"unset it: {DEPRECATED[name]}"))
        elif name in ELSEWHERE:
            elsewhere.append(name)
        elif (guess := nearest(name, sorted({*known, *ELSEWHERE}), cutoff=0.85)) is not None:
            findings.append(warn(TOPIC, f"{name} is no variable of ours", f"{guess} is; was it meant?"))
        elif name.startswith("INGRESS_"):
            findings.append(warn(TOPIC, f"{name} is no variable of ours", "unset it, or see ingress serve --help"))
        else:
            elsewhere.append(name)
    shown = f"read: {', '.join(read) or 'none'}" + (f"; not for us: {', '.join(elsewhere)}" if elsewhere else "")
    return [*findings, ok(TOPIC, shown)]
