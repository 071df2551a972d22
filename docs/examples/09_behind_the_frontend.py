"""A model behind the real OpenAI frontend: what an engine yields as strings, clients get as OpenAI's API says.

    DYN_FILE_KV=/tmp/kv python docs/examples/09_behind_the_frontend.py

With a frontend on the same DYN_FILE_KV (docs/engines.md, "Behind the real OpenAI frontend"), in another terminal:

    curl http://127.0.0.1:8000/v1/models
    curl -N http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \
        -d '{"model": "backwards", "stream": true, "messages": [{"role": "user", "content": "one two three"}]}'
"""

from collections.abc import AsyncIterator

import trio

import ingress
from ingress.models import ChatRequest, Finish, ModelCard


async def generate(request: ChatRequest) -> AsyncIterator[str | Finish]:
    words = request.messages[-1].text.split()
    if not words:
        raise ingress.InvalidArgument("there is nothing to turn around")  # HTTP 400, in these words
    limit = request.limit or len(words)
    for word in words[::-1][:limit]:
        await trio.sleep(0.05)
        yield f"{word} "
    yield Finish(prompt_tokens=len(words))  # what the engine knows better; all else is filled in


if __name__ == "__main__":
    card = ModelCard("backwards", types="Chat", context_length=4096)
    ingress.run(generate, endpoint="demo.backwards.generate", model=card)
