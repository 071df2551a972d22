"""A handler as it is written for Dynamo. Nothing in this file knows of ingress, or of trio.

    ingress serve --asyncio docs/examples/03_asyncio_handler.py:generate

and in another terminal:

    ingress call demo.backend.generate -d '{"prompt":"one two three"}'
"""

import asyncio


class FakeEngine:
    """Stands for the client of an asyncio inference engine: a generator of outputs, and an abort."""

    def __init__(self):
        self.aborted = []

    async def generate(self, prompt, request_id):
        for word in prompt.split():
            await asyncio.sleep(0.05)
            yield word

    async def abort(self, request_id):
        self.aborted.append(request_id)


engine = FakeEngine()


async def generate(request, context):
    async def abort_when_stopped():
        await context.async_killed_or_stopped()
        await engine.abort(context.id())

    watching = asyncio.create_task(abort_when_stopped())
    try:
        async for word in engine.generate(request["prompt"], context.id()):
            if context.is_stopped():
                return
            yield {"text": word + " ", "tenant": context.metadata.get("tenant", "nobody")}
    finally:
        watching.cancel()
