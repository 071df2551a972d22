"""Put a worker in front of a server that speaks OpenAI's API: vLLM, SGLang, llama.cpp, Ollama.

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python docs/examples/05_openai_upstream.py "Name three fruits."

The same without a program: ``OPENAI_BASE_URL=… ingress serve openai-upstream``.
"""

import sys

import trio

import ingress
from engines.openai_upstream import OpenAIUpstream


async def main(prompt: str) -> None:
    request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 60, "stream": True}
    discovery = ingress.MemoryDiscovery()
    async with (
        ingress.serving(OpenAIUpstream(), endpoint="demo.backend.generate", discovery=discovery, linger=0),
        ingress.open_client(discovery=discovery) as client,
        client.stream("demo.backend.generate", request) as chunks,
    ):
        async for chunk in chunks:
            for choice in chunk["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)
    print()


if __name__ == "__main__":
    trio.run(main, " ".join(sys.argv[1:]) or "Name three fruits.")
