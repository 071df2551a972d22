"""Libraries that block, and libraries that call back from threads of their own.

    python docs/examples/04_threaded.py

To serve either for real: ``ingress serve docs/examples/04_threaded.py:blocking``.
"""

import threading
import time

import trio

import ingress
from engines.callback import CallbackEngine


def blocking(request, context):
    """A sync generator is an engine as it is: it runs in a thread, and is held at its yield by a slow caller."""
    for word in request["prompt"].split():
        time.sleep(0.01)
        if context.is_stopped:  # may be read from any thread
            return
        yield word


class Library:
    """Stands for a library with a thread of its own that reports by callbacks."""

    def submit(self, prompt, on_token, on_done):
        cancelled = threading.Event()

        def work():
            for word in prompt.split():
                if cancelled.wait(0.01):
                    break
                on_token(word.upper())
            on_done()

        threading.Thread(target=work, daemon=True).start()
        return cancelled.set


library = Library()


def submitting(request, context, sink):
    """What it returns is called when the caller leaves."""
    return library.submit(request["prompt"], on_token=sink.chunk, on_done=sink.done)


called_back = CallbackEngine(submitting)


async def main():
    discovery = ingress.MemoryDiscovery()
    engines = {"demo.backend.blocking": blocking, "demo.backend.callback": called_back}
    async with (
        ingress.serving(engines, discovery=discovery, linger=0),
        ingress.open_client(discovery=discovery) as client,
    ):
        for endpoint in engines:
            async with client.stream(endpoint, {"prompt": "one two three"}) as responses:
                print(endpoint, [item async for item in responses])


if __name__ == "__main__":
    trio.run(main)
