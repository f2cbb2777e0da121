"""One side of a call by GStreamer's webrtcbin (libnice), driven as aiortc_side.py is."""

import json
import re
import sys
import threading
import time
import traceback
from urllib.parse import quote

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

PIPELINE = ("webrtcbin name=web bundle-policy=max-bundle ice-transport-policy=relay "
            "audiotestsrc is-live=true ! audioconvert ! opusenc ! rtpopuspay pt=96 ! "
            "application/x-rtp,media=audio,encoding-name=OPUS,payload=96 ! web.")
GATHERING_SECONDS = 30


def message(number: int, size: int) -> bytes:
    """Every message is its number in two bytes, then bytes counted up from that number."""
    return number.to_bytes(2, "big") + bytes((number + index) & 255 for index in range(2, size))


def eventually(condition, seconds: float = 3600) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def promised(ask):
    """What webrtcbin replies to an action that takes a promise."""
    promise = Gst.Promise.new()
    ask(promise)
    promise.wait()
    return promise.get_reply()


class Side:
    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.frames = 0

    def newPage(self, _) -> str:
        return Gst.version_string()

    def open(self, argument) -> None:
        server = argument["configuration"]["iceServers"][0]
        scheme, place = server["urls"].split(":", 1)
        user, password = (quote(server[key], safe="") for key in ("username", "credential"))
        self.pipeline = Gst.parse_launch(PIPELINE)
        self.web = self.pipeline.get_by_name("web")
        self.web.connect("pad-added", self.listen_to)
        if not self.web.emit("add-turn-server", f"{scheme}://{user}:{password}@{place}"):
            raise ValueError("webrtcbin refuses the URL")
        self.pipeline.set_state(Gst.State.PLAYING)
        options = Gst.Structure.new_from_string("options,negotiated=true,id=0,ordered=true")
        self.channel = self.web.emit("create-data-channel", "ferry", options)
        self.channel.connect("on-message-data", lambda _, data: self.received.append(bytes(data.get_data())))

    def listen_to(self, _, pad) -> None:
        if pad.direction != Gst.PadDirection.SRC:
            return
        sink = Gst.ElementFactory.make("fakesink")
        sink.set_property("signal-handoffs", True)
        sink.set_property("sync", False)
        sink.connect("handoff", self.count_frame)
        self.pipeline.add(sink)
        sink.sync_state_with_parent()
        pad.link(sink.get_static_pad("sink"))

    def count_frame(self, *_) -> None:
        self.frames += 1

    def described(self, description, kind: str) -> dict:
        promised(lambda promise: self.web.emit("set-local-description", description, promise))
        complete = GstWebRTC.WebRTCICEGatheringState.COMPLETE
        eventually(lambda: self.web.get_property("ice-gathering-state") == complete, GATHERING_SECONDS)
        sdp = self.web.get_property("local-description").sdp.as_text()
        types = re.findall(r"^a=candidate:.* typ (\w+)", sdp, re.MULTILINE)
        return {"type": kind, "sdp": sdp, "types": types, "candidateErrors": []}

    def offer(self, _) -> dict:
        reply = promised(lambda promise: self.web.emit("create-offer", None, promise))
        return self.described(reply.get_value("offer"), "offer")

    def answer(self, offer) -> dict:
        self.accept(offer)
        reply = promised(lambda promise: self.web.emit("create-answer", None, promise))
        return self.described(reply.get_value("answer"), "answer")

    def accept(self, description) -> None:
        _, parsed = GstSdp.SDPMessage.new()
        GstSdp.sdp_message_parse_buffer(description["sdp"].encode(), parsed)
        kinds = GstWebRTC.WebRTCSDPType
        kind = kinds.OFFER if description["type"] == "offer" else kinds.ANSWER
        remote = GstWebRTC.WebRTCSessionDescription.new(kind, parsed)
        promised(lambda promise: self.web.emit("set-remote-description", remote, promise))

    def outcome(self, _) -> str:
        states = GstWebRTC.WebRTCPeerConnectionState
        names = {states.CONNECTED: "connected", states.FAILED: "failed"}
        eventually(lambda: self.web.get_property("connection-state") in names)
        return names[self.web.get_property("connection-state")]

    def send(self, wanted) -> None:
        opened = GstWebRTC.WebRTCDataChannelState.OPEN
        eventually(lambda: self.channel.get_property("ready-state") == opened)
        for number in range(wanted["count"]):
            self.channel.emit("send-data", GLib.Bytes.new(message(number, wanted["size"])))

    def receive(self, wanted) -> int:
        eventually(lambda: len(self.received) >= wanted["count"])
        for number, received in enumerate(self.received):
            if received != message(number, wanted["size"]):
                raise ValueError(f"message {number} is not the one sent")
        return len(self.received)

    def listen(self, wanted) -> int:
        eventually(lambda: self.frames >= wanted["frames"])
        return self.frames

    def close(self, _) -> None:
        self.pipeline.set_state(Gst.State.NULL)


def respond(side: Side, line: str) -> None:
    request = json.loads(line)
    try:
        answer = {"result": getattr(side, request["call"])(request["argument"])}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": repr(error)}
    print(json.dumps({"id": request["id"], **answer}), flush=True)


def main() -> None:
    Gst.init(None)
    threading.Thread(target=GLib.MainLoop().run, daemon=True).start()
    side = Side()
    for line in sys.stdin:
        threading.Thread(target=respond, args=(side, line), daemon=True).start()


main()
