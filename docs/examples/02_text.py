"""Text, word by word, from the engine that comes with the package; the caller stops it in mid-answer.

    python docs/examples/02_text.py

To serve it for real: ``ingress serve markov``.
"""

import trio

import ingress
from engines.markov import markov

PROMPT = {"prompt": "why is the sky blue", "seed": 3, "max_words": 1000, "delay": 0.01}


async def main():
    discovery = ingress.MemoryDiscovery()
    async with (
        ingress.serving(markov, endpoint="demo.backend.generate", discovery=discovery, linger=0),
        ingress.open_client(discovery=discovery) as client,
        client.stream("demo.backend.generate", PROMPT) as responses,
    ):
        async for item in responses:
            print(item["text"], end="", flush=True)
            if item["text"].endswith(". "):
                break  # leaving the block cancels the engine, at the other end, where it waits
    print()


if __name__ == "__main__":
    trio.run(main)
