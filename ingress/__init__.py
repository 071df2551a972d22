"""The worker side of a distributed-inference cluster: a function becomes a worker that real Dynamo clients call.

The public names are re-exported here and loaded when first used, so that ``ingress --version`` costs no import of trio.
"""

from typing import TYPE_CHECKING

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from ._dial_policy import DialPolicy as DialPolicy
    from ._engine import bidirectional as bidirectional
    from ._serve import make_worker as make_worker
    from ._serve import run as run
    from ._serve import serving as serving
    from ._threads import start_engine_thread as start_engine_thread
    from ._token import TokenKeys as TokenKeys
    from ._worker import Worker as Worker
    from ._worker_options import WorkerOptions as WorkerOptions
    from .abc import AdmissionPolicy as AdmissionPolicy
    from .abc import Context as Context
    from .abc import Dialer as Dialer
    from .abc import Discovery as Discovery
    from .abc import Engine as Engine
    from .abc import IngressDispatch as IngressDispatch
    from .abc import ParsedRequest as ParsedRequest
    from .abc import RequestPlane as RequestPlane
    from .client import Client as Client
    from .client import open_client as open_client
    from .discovery import FileDiscovery as FileDiscovery
    from .discovery import MemoryDiscovery as MemoryDiscovery
    from .errors import IngressError as IngressError
    from .errors import InvalidArgument as InvalidArgument
    from .errors import Overloaded as Overloaded
    from .errors import RemoteError as RemoteError
    from .handover import Handover as Handover
    from .models import ModelCard as ModelCard
    from .tls import TlsOptions as TlsOptions
    from .wire.messages import Annotated as Annotated
    from .wire.messages import ErrorEvent as ErrorEvent
    from .wire.records import EndpointId as EndpointId

_HOMES = {
    "AdmissionPolicy": "abc",
    "Annotated": "wire.messages",
    "Client": "client",
    "Context": "abc",
    "DialPolicy": "_dial_policy",
    "Dialer": "abc",
    "Discovery": "abc",
    "EndpointId": "wire.records",
    "Engine": "abc",
    "ErrorEvent": "wire.messages",
    "FileDiscovery": "discovery",
    "Handover": "handover",
    "IngressDispatch": "abc",
    "IngressError": "errors",
    "InvalidArgument": "errors",
    "MemoryDiscovery": "discovery",
    "ModelCard": "models",
    "Overloaded": "errors",
    "ParsedRequest": "abc",
    "RemoteError": "errors",
    "RequestPlane": "abc",
    "TlsOptions": "tls",
    "TokenKeys": "_token",
    "Worker": "_worker",
    "WorkerOptions": "_worker_options",
    "bidirectional": "_engine",
    "make_worker": "_serve",
    "open_client": "client",
    "run": "_serve",
    "serving": "_serve",
    "start_engine_thread": "_threads",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
