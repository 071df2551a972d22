"""Where workers are announced and found. Re-exports only."""

from .file import FileDiscovery as FileDiscovery
from .file import default_directory as default_directory
from .memory import MemoryDiscovery as MemoryDiscovery
