"""The villain: everything that the port takes from anybody, as fast as the good callers may bear it."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from ingress._network import TcpStream
from ingress.wire.messages import ControlWord
from ingress.wire.request_frame import encode_request_frame
from ingress.wire.two_part import encode_two_part
from tests.raw_caller import RawCaller, open_raw_caller
from tests.reliability.served import NETWORK, Worker

# Between two attacks of one villain; some 60 a second with all of them.
PAUSE = 0.05
VILLAINS = 4


@define
class Villain:
    """One task that attacks.

    Each attack has a listener of its own, which takes with it what was dialled back and not accepted. With one for all
    of them, attacks met the streams of others before them, and its queue kept ever more streams running: 350 after two
    minutes, 520 after five, and until then 10 to 19 MiB a minute that looked like a leak of the worker's.
    """

    worker: Worker
    dice: random.Random
    done: Counter[str] = field(factory=Counter)
    caller: RawCaller = field(init=False)
    """That of the present attack."""

    @property
    def attacks(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.junk,
            self.mutated_frame,
            self.half_a_frame,
            self.unreadable_body,
            self.vanish_before_the_ack,
            self.vanish_in_mid_stream,
            self.stop_in_mid_stream,
            self.junk_words,
            self.never_read,
            self.never_accept,
            self.refused_dial_back,
            self.forbidden_dial_back,
        ]

    async def attack_until(self, over: trio.Event) -> None:
        while not over.is_set():
            attack = self.dice.choice(self.attacks)
            async with open_raw_caller(NETWORK) as self.caller:
                with (
                    trio.move_on_after(5),
                    contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError),
                ):
                    await attack()
            self.done[attack.__name__] += 1
            await trio.sleep(self.dice.expovariate(1 / PAUSE))

    # -- what it sends -------------------------------------------------------------------------------------------------

    def frame(self, payload: bytes) -> bytes:
        return encode_request_frame(self.worker.record.tcp_target[1], {"traceparent": "\x1b"}, payload)

    def good_frame(self, **request: object) -> bytes:
        return self.frame(self.caller.payload({"do": "count", "n": 1000, "pause": 0.01, **request}))

    async def send(self, data: bytes) -> None:
        """Send on a connection of its own, look at the answer now and then, and close."""
        async with await self.worker.connect() as stream:
            await stream.send_all(data)
            if self.dice.random() < 0.5:
                with trio.move_on_after(0.2):
                    await stream.receive_some()

    async def taken(self, data: bytes) -> TcpStream:
        """Send a request and take its dial-back."""
        await self.send(data)
        stream = await self.caller.listener.accept()
        assert isinstance(stream, TcpStream)
        return stream

    # -- attacks -------------------------------------------------------------------------------------------------------

    async def junk(self) -> None:
        await self.send(self.dice.randbytes(self.dice.randrange(1, 3000)))

    async def mutated_frame(self) -> None:
        frame = bytearray(self.good_frame())
        for _ in range(self.dice.randrange(1, 6)):
            frame[self.dice.randrange(len(frame))] = self.dice.randrange(256)
        await self.send(bytes(frame))

    async def half_a_frame(self) -> None:
        frame = self.good_frame(text="x" * 50_000)
        await self.send(frame[: self.dice.randrange(len(frame))])

    async def unreadable_body(self) -> None:
        body = self.dice.choice([b"[" * 5000, b"NaN", b"\xff", b"9" * 100_000, b"[" + b"[]," * 700_000])
        async with await self.taken(self.frame(self.caller.payload(body))) as stream:
            while await stream.receive_some():
                pass

    async def vanish_before_the_ack(self) -> None:
        stream = await self.worker.connect()
        await stream.send_all(self.good_frame() * 5)
        stream.close_nowait()

    async def vanish_in_mid_stream(self) -> None:
        stream = await self.taken(self.good_frame())
        await stream.receive_some(self.dice.randrange(1, 400))
        stream.close_nowait()

    async def stop_in_mid_stream(self) -> None:
        async with await self.taken(self.good_frame()) as stream:
            await stream.receive_some()
            word = self.dice.choice([ControlWord.STOP, ControlWord.KILL])
            await stream.send_all(encode_two_part(word.encode()) * self.dice.randrange(1, 100))
            while await stream.receive_some():
                pass

    async def junk_words(self) -> None:
        async with await self.taken(self.good_frame()) as stream:
            await stream.send_all(self.dice.randbytes(100))
            while await stream.receive_some():
                pass

    async def never_read(self) -> None:
        async with await self.taken(self.good_frame(n=10**6, pause=0, text="x" * 1000)):
            await trio.sleep(2)

    async def never_accept(self) -> None:
        await self.send(self.good_frame() + self.good_frame(n=10**6, pause=0, text="x" * 1000))
        await trio.sleep(2)

    async def refused_dial_back(self) -> None:
        async with await NETWORK.open_listener("127.0.0.1", 0) as listener:
            address = f"127.0.0.1:{listener.address[1]}"
        control = self.caller.control(info={"address": address})
        await self.send(self.frame(self.caller.payload(1, control)))

    async def forbidden_dial_back(self) -> None:
        address = self.dice.choice(["169.254.169.254:80", "10.1.2.3:4000", "localhost:22", "127.0.0.1:22", "[::1]:0"])
        control = self.caller.control(info={"address": address}, request_id="\n" * 20)
        await self.send(self.frame(self.caller.payload(1, control)))
