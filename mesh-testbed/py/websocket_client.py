"""Talks over a WebSocket and prints what came of it, as one line of JSON."""
import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


async def main():
    told = {}
    try:
        async with connect(sys.argv[1], max_size=8 << 20, open_timeout=10) as socket:
            await socket.send("hello")
            told["text"] = await socket.recv()
            big = bytes(range(256)) * 4096
            await socket.send(big)
            told["binary"] = await socket.recv() == big
            told["ping"] = await (await socket.ping()) >= 0
            await socket.send("bye")
            try:
                await socket.recv()
            except ConnectionClosed as closed:
                told["close"] = [closed.rcvd.code, closed.rcvd.reason]
    except InvalidStatus as error:
        told["refused"] = error.response.status_code
    print(json.dumps(told), flush=True)


asyncio.run(main())
