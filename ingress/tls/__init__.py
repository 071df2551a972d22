"""TLS on both planes: what is configured, the contexts made from it, and the network that speaks it."""

from ._contexts import TlsContexts as TlsContexts
from ._network import TlsNetwork as TlsNetwork
from ._network import TlsStream as TlsStream
from ._options import DEFAULT_HANDSHAKE_TIMEOUT as DEFAULT_HANDSHAKE_TIMEOUT
from ._options import PREFIX as PREFIX
from ._options import TlsOptions as TlsOptions
from ._options import check_key_file as check_key_file
