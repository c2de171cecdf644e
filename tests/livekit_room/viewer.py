"""A viewer that uses another author's client (PyPI: livekit), for tests/livekit_room/others.rs.

Connects, subscribes to a channel, pings and acknowledges, and writes the first COUNT binary frames with the channel's
messages to standard output, unchanged.

usage: viewer.py URL TOKEN CHANNEL COUNT
"""

import asyncio
import json
import struct
import sys

from livekit import rtc

MESSAGE_DATA, PONG = 1, 6


def framed(kind, payload):
    return struct.pack("<BI", kind, len(payload)) + payload


async def main(url, token, channel, count):
    room = rtc.Room()
    frames = asyncio.Queue()
    readers = set()

    async def read(reader):
        pending = bytearray()
        async for chunk in reader:
            pending += chunk
            while len(pending) >= 5:
                kind, length = struct.unpack_from("<BI", pending)
                if len(pending) < 5 + length:
                    break
                await frames.put((kind, bytes(pending[5 : 5 + length])))
                del pending[: 5 + length]

    def opened(reader, _identity):
        readers.add(asyncio.create_task(read(reader)))

    room.register_byte_stream_handler("control", opened)
    await room.connect(url, token)
    kind, payload = await frames.get()
    assert kind == 1 and json.loads(payload)["op"] == "serverInfo", payload
    control = await room.local_participant.stream_bytes(
        name="control", topic="control", destination_identities=["device"]
    )
    subscribe = {"op": "subscribe", "channels": [{"id": channel, "requestVideoTrack": False}]}
    await control.write(framed(1, json.dumps(subscribe).encode()))
    await control.write(framed(2, struct.pack("<BQ", 4, 1)))
    seen = 0
    while seen < count:
        kind, payload = await frames.get()
        if kind == 2 and payload[0] == PONG:
            stamp = struct.unpack_from("<Q", payload, 9)[0]
            await control.write(framed(2, struct.pack("<BQ", 5, stamp)))
        elif kind == 2 and payload[0] == MESSAGE_DATA:
            sys.stdout.buffer.write(framed(kind, payload))
            seen += 1
    sys.stdout.buffer.flush()
    for reader in readers:
        reader.cancel()
    await room.disconnect()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
