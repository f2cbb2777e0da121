"""One side of a call by aiortc: the rig writes {id, call, argument} lines, this answers {id, result} or {id, error}."""

import asyncio
import contextlib
import json
import re
import sys
import traceback

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError


def message(number: int, size: int) -> bytes:
    """Every message is its number in two bytes, then bytes counted up from that number."""
    return number.to_bytes(2, "big") + bytes((number + index) & 255 for index in range(2, size))


async def eventually(condition) -> None:
    while not condition():
        await asyncio.sleep(0.05)


class Side:
    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.frames = 0

    async def newPage(self, _) -> str:
        return "aiortc"

    async def open(self, argument) -> None:
        servers = [RTCIceServer(**server) for server in argument["configuration"]["iceServers"]]
        self.connection = RTCPeerConnection(RTCConfiguration(servers))
        self.channel = self.connection.createDataChannel("ferry", negotiated=True, id=0)
        self.channel.on("message", self.received.append)
        if argument["media"]:
            self.connection.addTrack(AudioStreamTrack())
        self.connection.on("track", lambda track: asyncio.ensure_future(self.consume(track)))

    async def consume(self, track) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                await track.recv()
                self.frames += 1

    def described(self) -> dict:
        # aiortc has no relay-only policy: its other candidates stay here.
        description = self.connection.localDescription
        lines = [line for line in description.sdp.split("\r\n")
                 if not line.startswith("a=candidate") or " typ relay" in line]
        types = re.findall(r"^a=candidate:.* typ (\w+)", "\n".join(lines), re.MULTILINE)
        return {"type": description.type, "sdp": "\r\n".join(lines), "types": types, "candidateErrors": []}

    async def offer(self, _) -> dict:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.described()

    async def answer(self, offer) -> dict:
        await self.accept(offer)
        await self.connection.setLocalDescription(await self.connection.createAnswer())
        return self.described()

    async def accept(self, description) -> None:
        remote = RTCSessionDescription(sdp=description["sdp"], type=description["type"])
        await self.connection.setRemoteDescription(remote)

    async def outcome(self, _) -> str:
        await eventually(lambda: self.connection.connectionState in ("connected", "failed"))
        return self.connection.connectionState

    async def send(self, wanted) -> None:
        await eventually(lambda: self.channel.readyState == "open")
        for number in range(wanted["count"]):
            self.channel.send(message(number, wanted["size"]))

    async def receive(self, wanted) -> int:
        await eventually(lambda: len(self.received) >= wanted["count"])
        for number, received in enumerate(self.received):
            if received != message(number, wanted["size"]):
                raise ValueError(f"message {number} is not the one sent")
        return len(self.received)

    async def listen(self, wanted) -> int:
        await eventually(lambda: self.frames >= wanted["frames"])
        return self.frames

    async def close(self, _) -> None:
        await self.connection.close()


async def respond(side: Side, line: bytes) -> None:
    request = json.loads(line)
    try:
        answer = {"result": await getattr(side, request["call"])(request["argument"])}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": repr(error)}
    print(json.dumps({"id": request["id"], **answer}), flush=True)


async def main() -> None:
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    side, tasks = Side(), set()
    while line := await lines.readline():
        task = asyncio.ensure_future(respond(side, line))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


asyncio.run(main())
