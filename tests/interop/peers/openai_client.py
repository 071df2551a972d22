"""The official OpenAI client driven by JSON lines; runs in the frontend's environment.

    python openai_client.py BASE_URL

Reads one command a line on stdin, writes one event a line on stdout. Calls run concurrently; every event carries the
`tag` of its command.

    {"op":"call","tag":"a","method":"chat.completions.create","arguments":{..}}
        -> item {data}*, then end {items} | error {type,status,body,items}
        Streams where the arguments say so; otherwise the one item is the whole answer.
    {"op":"leave","tag":"b","of":"a"}
        -> done. Closes the connection of a stream: its call ends as dropped.
    {"op":"realtime","tag":"r","model":"m","events":[..],"wanted":"response.done"}
        -> item {data}*, then end, after the server event of that type
    {"op":"exit"}
"""

import asyncio
import json
import sys

import openai
from events import emit

tasks = {}


async def call(client, tag, method, arguments):
    items = 0
    try:
        function = client
        for name in method.split("."):
            function = getattr(function, name)
        answer = await function(**arguments)
        if not hasattr(answer, "__aiter__"):
            emit(event="item", tag=tag, data=answer.model_dump(exclude_unset=True))
            items = 1
        else:
            try:
                async for chunk in answer:
                    items += 1
                    emit(event="item", tag=tag, data=chunk.model_dump(exclude_unset=True))
            except asyncio.CancelledError:
                # Not the pool, which would keep the connection: the client is gone.
                await asyncio.shield(answer.close()) if hasattr(answer, "close") else None
                raise
        emit(event="end", tag=tag, items=items)
    except asyncio.CancelledError:
        emit(event="dropped", tag=tag, items=items)
    except openai.APIError as exc:
        emit(
            event="error",
            tag=tag,
            type=type(exc).__name__,
            status=getattr(exc, "status_code", None),
            body=exc.body,
            items=items,
        )
    except Exception as exc:
        emit(event="error", tag=tag, type=type(exc).__name__, status=None, body=str(exc), items=items)


async def realtime(client, tag, model, events, wanted):
    items = 0
    try:
        async with client.realtime.connect(model=model, max_retries=0) as connection:
            for event in events:
                await connection.send(event)
            async for event in connection:
                items += 1
                emit(event="item", tag=tag, data=event.model_dump(exclude_unset=True))
                if event.type == wanted:
                    break
        emit(event="end", tag=tag, items=items)
    except asyncio.CancelledError:
        emit(event="dropped", tag=tag, items=items)
    except Exception as exc:
        emit(event="error", tag=tag, type=type(exc).__name__, status=None, body=str(exc), items=items)


async def main(base_url):
    # Retries would hide what each single request was answered.
    client = openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    emit(event="ready", version=openai.__version__)
    async for line in reader:
        command = json.loads(line)
        tag, op = command["tag"], command["op"]
        if op == "call":
            tasks[tag] = asyncio.create_task(call(client, tag, command["method"], command.get("arguments", {})))
        elif op == "realtime":
            tasks[tag] = asyncio.create_task(
                realtime(client, tag, command["model"], command["events"], command["wanted"])
            )
        elif op == "leave":
            tasks[command["of"]].cancel()
            emit(event="done", tag=tag)
        elif op == "exit":
            break


asyncio.run(main(sys.argv[1]))
