"""The client robo-ws-bridge: `python robo.py URL TOPIC COUNT` prints COUNT messages of a topic as lines of JSON, and fails
if the server sends a warning or an error."""

import asyncio
import json
import sys

from robo_ws_bridge.client import WebSocketBridgeClient


async def main(url: str, topic: str, count: int) -> None:
    done = asyncio.get_running_loop().create_future()
    seen = 0
    client = WebSocketBridgeClient(url)

    def finish(problem: str | None) -> None:
        if not done.done():
            done.set_result(problem)

    def status(level: int, message: str, _id: str | None) -> None:
        if level > 0:
            finish(f"the server says: {message}")

    async def advertised(channel) -> None:
        if channel["topic"] == topic:
            await client.subscribe(topic)

    def message(channel, timestamp: int, payload: bytes) -> None:
        nonlocal seen
        print(json.dumps({"topic": channel["topic"], "timestamp": timestamp, "message": json.loads(payload)}))
        seen += 1
        if seen == count:
            finish(None)

    client.on_status(status)
    client.on_advertised_channel(advertised)
    client.on_message(message)
    await client.connect()
    problem = await asyncio.wait_for(done, 20)
    await client.disconnect()
    if problem:
        sys.exit(problem)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
