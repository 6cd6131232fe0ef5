"""A WebSocket server that sends back what it gets; `bye` closes with code 4001."""
import asyncio
import json

from websockets.asyncio.server import serve


async def echo(socket):
    async for message in socket:
        if message == "bye":
            await socket.close(4001, "as you wish")
            return
        await socket.send(message)


async def main():
    async with serve(echo, "0.0.0.0", 0, max_size=8 << 20) as server:
        port = server.sockets[0].getsockname()[1]
        print(json.dumps({"listening": f"0.0.0.0:{port}"}), flush=True)
        await server.serve_forever()


asyncio.run(main())
