"""A grpc.aio server that streams the benchmark's items; prints its port."""

import asyncio

import grpc
import msgspec
from items import items


async def generate(request, context):
    async for item in items(msgspec.json.decode(request)):
        yield item


async def main():
    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(generate)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Bench", {"Generate": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"port {port}", flush=True)
    await server.wait_for_termination()


asyncio.run(main())
