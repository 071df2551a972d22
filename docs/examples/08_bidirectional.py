"""A conversation: requests and answers flow at the same time, on one call.

    python docs/examples/08_bidirectional.py

To serve it for real: ``ingress serve docs/examples/08_bidirectional.py:converse``, then
``ingress call --bidi demo.backend.generate``, which reads a request from each line you type.
"""

import trio

import ingress


@ingress.bidirectional
async def converse(requests, context):
    heard = []
    async for request in requests:
        heard.append(request)
        yield {"heard": request, "so_far": len(heard)}
    yield {"summary": " ".join(heard)}  # the caller has said all it had to say


async def main():
    discovery = ingress.MemoryDiscovery()
    async with (
        ingress.serving(converse, endpoint="demo.backend.generate", discovery=discovery, linger=0),
        ingress.open_client(discovery=discovery) as client,
        client.open_bidirectional("demo.backend.generate") as call,
    ):
        for word in ("both", "ways", "at", "once"):
            await call.send(word)
            print(await anext(call))
        await call.close_input()
        async for item in call:
            print(item)


if __name__ == "__main__":
    trio.run(main)
