"""Requests with types: an attrs class in the signature, and misfits go home in words before the engine sees them.

python docs/examples/07_typed_requests.py
"""

import attrs
import trio

import ingress


@attrs.frozen
class Message:
    role: str
    content: str


@attrs.frozen
class Chat:
    messages: list[Message]
    max_words: int = attrs.field(default=10, validator=attrs.validators.ge(1))


async def generate(request: Chat):
    words = request.messages[-1].content.split()
    for word in words[: request.max_words]:
        yield {"text": word}


async def main():
    discovery = ingress.MemoryDiscovery()
    async with (
        ingress.serving(generate, endpoint="demo.backend.generate", discovery=discovery, linger=0),
        ingress.open_client(discovery=discovery) as client,
    ):
        for request in (
            {"messages": [{"role": "user", "content": "typed all the way"}], "max_words": 2},
            {"messages": [{"role": "user"}]},
            {"messages": [], "max_words": "many"},
        ):
            try:
                async with client.stream("demo.backend.generate", request) as responses:
                    print([item async for item in responses])
            except ingress.RemoteError as error:
                print(error)


if __name__ == "__main__":
    trio.run(main)
