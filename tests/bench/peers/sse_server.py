"""A Starlette application on uvicorn that streams the benchmark's items as server-sent events; prints its port."""

import socket

import msgspec
import uvicorn
from items import items
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route


async def generate(request):
    wanted = msgspec.json.decode(await request.body())

    async def events():
        async for item in items(wanted):
            yield b"data: " + item + b"\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(f"port {listening.getsockname()[1]}", flush=True)
config = uvicorn.Config(Starlette(routes=[Route("/", generate, methods=["POST"])]), backlog=4096)
uvicorn.Server(config).run(sockets=[listening])
