"""The public names: what is here may be relied on, so a change of it is a decision."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import ingress
import ingress.abc
import ingress.errors
import shapes

INGRESS = {
    "AdmissionPolicy",
    "Annotated",
    "Client",
    "Context",
    "DialPolicy",
    "Dialer",
    "Discovery",
    "EndpointId",
    "Engine",
    "ErrorEvent",
    "FileDiscovery",
    "Handover",
    "IngressDispatch",
    "IngressError",
    "InvalidArgument",
    "MemoryDiscovery",
    "ModelCard",
    "Overloaded",
    "ParsedRequest",
    "RemoteError",
    "RequestPlane",
    "TlsOptions",
    "TokenKeys",
    "Worker",
    "WorkerOptions",
    "__version__",
    "bidirectional",
    "make_worker",
    "open_client",
    "run",
    "serving",
    "start_engine_thread",
}

ABC = {
    "AdmissionPolicy",
    "Arrival",
    "Context",
    "Dialer",
    "Discovery",
    "DiscoveryFactory",
    "Engine",
    "IngressDispatch",
    "InstanceView",
    "Load",
    "Network",
    "ParsedRequest",
    "PlaneFactory",
    "PlaneOptions",
    "Push",
    "PushReceiver",
    "RequestPlane",
}

# Each class with its label in dynamo_component_errors_total and the kind it has on the wire.
ERRORS = {
    "IngressError": (None, "Unknown"),
    "InvalidMessage": ("invalid_message", "InvalidArgument"),
    "MessageTooLarge": ("invalid_message", "InvalidArgument"),
    "DeserializationError": ("deserialization", "InvalidArgument"),
    "ResponseStreamError": ("response_stream", "CannotConnect"),
    "DialBackRefused": ("response_stream", "CannotConnect"),
    "UnsupportedTransport": ("response_stream", "CannotConnect"),
    "PublishError": (None, "Unknown"),
    "GenerateError": ("generate", "Unknown"),
    "InvalidArgument": ("generate", "InvalidArgument"),
    "CannotConnect": ("generate", "CannotConnect"),
    "Disconnected": ("generate", "Disconnected"),
    "ConnectionTimeout": ("generate", "ConnectionTimeout"),
    "RequestCancelled": ("generate", "Cancelled"),
    "EngineShutdown": ("generate", "EngineShutdown"),
    "TokenRefused": (None, "Unknown"),
    "InputClosed": (None, "Unknown"),
    "ProtocolError": (None, "Unknown"),
    "LocalProtocolError": (None, "Unknown"),
    "RemoteProtocolError": ("invalid_message", "Unknown"),
    "DialsPending": ("response_stream", "Unknown"),
    "Overloaded": (None, "Unknown"),
    "QueueDeadlinePassed": (None, "Unknown"),
    "RequestMemoryExhausted": (None, "Unknown"),
    "PolicyFailed": (None, "Unknown"),
    "Unavailable": (None, "Unknown"),
    "NotAccepted": (None, "Unknown"),
    "NoDialBack": (None, "Unknown"),
    "NoInstances": (None, "Unknown"),
    "StreamIncomplete": (None, "Unknown"),
    "RemoteError": (None, "Unknown"),
    "PluginError": (None, "Unknown"),
    "StartupError": (None, "Unknown"),
}


def own_names(module: ModuleType) -> set[str]:
    """The public names a module defines itself."""
    tree = ast.parse(Path(inspect.getsourcefile(module) or "").read_text())
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_") and not name.endswith("T")}


def test_the_names_of_ingress() -> None:
    assert set(ingress.__all__) == INGRESS
    assert set(dir(ingress)) == INGRESS
    for name in INGRESS:
        assert getattr(ingress, name) is not None


def test_type_checkers_see_the_same_names() -> None:
    """They read the imports under TYPE_CHECKING, the interpreter the table below them."""
    source = Path(inspect.getsourcefile(ingress) or "").read_text()
    imported = {
        (alias.name, (node.module or "").removeprefix("."))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level == 1 and alias_is_public(node)
        for alias in node.names
    }
    assert {(name, home) for name, home in ingress._HOMES.items()} == imported - {("__version__", "_version")}


def alias_is_public(node: ast.ImportFrom) -> bool:
    return all(alias.asname == alias.name for alias in node.names)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ingress' has no attribute 'surprise'"):
        ingress.surprise  # noqa: B018


def test_importing_ingress_imports_nothing_heavy() -> None:
    """So that ``ingress --version`` is quick."""
    program = (
        "import ingress, sys; print([name for name in ('trio', 'prometheus_client', 'msgspec') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_what_one_subclasses_and_receives() -> None:
    assert own_names(ingress.abc) - {"InputT"} == ABC


def test_the_error_tree_with_its_labels_and_kinds() -> None:
    classes = {name: getattr(ingress.errors, name) for name in own_names(ingress.errors)}
    assert {name: (cls.error_type, cls.backend_kind) for name, cls in classes.items()} == ERRORS
    assert all(issubclass(cls, ingress.IngressError) for cls in classes.values())


def test_the_built_in_shapes() -> None:
    names = {name for name in vars(shapes) if isinstance(getattr(shapes, name), type)}
    assert names >= {"HeaderAndData"}
    for name in names:
        assert issubclass(getattr(shapes, name), ingress.IngressDispatch)


def test_an_abstract_class_with_a_method_missing_cannot_be_made() -> None:
    class Half(ingress.IngressDispatch[str]):
        def accepts(self, payload: bytes) -> bool:
            return True

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]  # the wrong type is the test
