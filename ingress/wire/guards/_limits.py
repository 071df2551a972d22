"""What a body may hold, whatever its codec, and what its dear parts count."""

from __future__ import annotations

# Deeper bodies are refused. Released JSON clients give up at 128 levels too, envelope included.
MAX_BODY_DEPTH = 128

# 32 MiB of "[]," or of the msgpack byte 0x90 would decode to gigabytes: one empty container costs 56 bytes and more.
MAX_BODY_NODES = 1_000_000

# What a container and a key count beside their value. With that the dearest million that pass, whatever they are, take
# the decoders 0.2 s (0.12 µs a list, 0.75 µs a key, on the machine of docs/reliability.md), in which nothing else runs.
OF_CONTAINER, OF_KEY = 3, 3
