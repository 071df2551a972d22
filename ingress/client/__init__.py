"""The caller's half: :func:`open_client` finds workers and streams their answers."""

from ._client import Client as Client
from ._open_client import open_client as open_client
from ._response_stream import ResponseStream as ResponseStream
from ._routing import Routing as Routing
