"""The smallest worker: an async generator, and a caller in the same process.

    python docs/examples/01_echo.py

To serve it for real: ``ingress serve docs/examples/01_echo.py:echo``, then in another terminal
``ingress call demo.backend.generate -d '"hello"'``.
"""

import trio

import ingress


async def echo(request, context):
    for repetition in range(3):
        yield {"repetition": repetition, "echo": request}


async def main():
    discovery = ingress.MemoryDiscovery()
    async with (
        ingress.serving(echo, endpoint="demo.backend.generate", discovery=discovery, linger=0),
        ingress.open_client(discovery=discovery) as client,
        client.stream("demo.backend.generate", "hello") as responses,
    ):
        async for item in responses:
            print(item)


if __name__ == "__main__":
    trio.run(main)
