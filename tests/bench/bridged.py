"""The real worker's benchmark handler behind our bridge, on asyncio's own loop."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from engines.asyncio_bridge import AsyncioEngine
from engines.asyncio_loop import AsyncioLoop

sys.path.insert(0, str(Path(__file__).parents[1] / "interop" / "peers"))  # the handler imports its neighbours

plain = AsyncioEngine(importlib.import_module("dynamo_engines").bench, loop=AsyncioLoop(use_uvloop=False))
