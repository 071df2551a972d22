"""The built-in wire shapes, found by entry point like anyone's."""

from .header_and_data import HeaderAndData as HeaderAndData
from .header_only import HeaderOnly as HeaderOnly
