"""How pushes arrive."""

from .tcp import TcpRequestPlane as TcpRequestPlane
