"""A caller as a process of its own, to be killed in mid-stream; plain sockets only, so that it starts in no time.

    python -I storm_caller.py LISTENING_FD WORKER_PORT COUNT READ < payload frames

Pushes what comes on standard input over one request connection, takes the dial-backs, reads READ bytes of each (0: none
are even accepted) and then waits to be killed.
"""

from __future__ import annotations

import socket
import sys
import threading


def main() -> None:
    descriptor, port, count, read = map(int, sys.argv[1:])
    listener = socket.socket(fileno=descriptor)
    worker = socket.create_connection(("127.0.0.1", port))
    worker.sendall(sys.stdin.buffer.read())
    accepted = []
    for _ in range(count if read else 0):
        accepted.append(listener.accept()[0])
        left = read
        while left > 0 and (data := accepted[-1].recv(min(left, 65536))):
            left -= len(data)
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
