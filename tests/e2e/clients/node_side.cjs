// One side of a call in Node: werift, or libwebrtc itself (@roamhq/wrtc), driven as aiortc_side.py is.
//
// Usage: node_side.cjs werift|wrtc

"use strict";

const { createInterface } = require("node:readline");

const kind = process.argv[2];
const library = require(kind === "werift" ? "werift" : "@roamhq/wrtc");
// libwebrtc goes on looking for candidates for 40 s behind a NAT; the relayed ones come at once.
const GATHERING_MS = 4000;

let connection;
let channel;
let timer;
let frames = 0;
const received = [];
const candidateErrors = [];

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function eventually(condition, ms = Infinity) {
  const deadline = Date.now() + ms;
  while (!condition() && Date.now() < deadline) await sleep(50);
}

/** Every message is its number in two bytes, then bytes counted up from that number. */
function message(number, size) {
  const bytes = new Uint8Array(size).map((_, index) => number + index);
  new DataView(bytes.buffer).setUint16(0, number);
  return bytes;
}

function addAudioOfWerift() {
  const track = new library.MediaStreamTrack({ kind: "audio" });
  connection.addTransceiver(track, { direction: "sendrecv" });
  let sequenceNumber = 0;
  const payload = Buffer.alloc(60);
  timer = setInterval(() => {
    sequenceNumber = (sequenceNumber + 1) & 0xffff;
    const header = { sequenceNumber, timestamp: sequenceNumber * 960, payloadType: 96, ssrc: 1, payloadOffset: 12 };
    track.writeRtp(new library.RtpPacket(new library.RtpHeader(header), payload));
  }, 20);
  connection.onTrack.subscribe((remote) => remote.onReceiveRtp.subscribe(() => (frames += 1)));
}

function addAudioOfLibwebrtc() {
  const source = new library.nonstandard.RTCAudioSource();
  connection.addTrack(source.createTrack());
  const audio = { sampleRate: 48000, bitsPerSample: 16, channelCount: 1, numberOfFrames: 480 };
  timer = setInterval(() => source.onData({ samples: new Int16Array(480), ...audio }), 10);
  connection.ontrack = ({ track }) => {
    new library.nonstandard.RTCAudioSink(track).ondata = () => (frames += 1);
  };
}

async function described(description) {
  await connection.setLocalDescription(description);
  await eventually(() => connection.iceGatheringState === "complete", GATHERING_MS);
  const { type, sdp } = connection.localDescription;
  const lines = sdp.split("\r\n").filter((line) => !line.startsWith("a=candidate") || line.includes(" typ relay"));
  const relayed = lines.join("\r\n");
  const types = [...relayed.matchAll(/^a=candidate:.* typ (\w+)/gm)].map((match) => match[1]);
  return { type, sdp: relayed, types, candidateErrors };
}

const calls = {
  newPage: () => kind,

  open({ configuration, media }) {
    connection = new library.RTCPeerConnection(configuration);
    connection.addEventListener?.("icecandidateerror", ({ url, errorCode, errorText }) =>
      candidateErrors.push(`${url}: ${errorCode} ${errorText}`));
    channel = connection.createDataChannel("ferry", { negotiated: true, id: 0 });
    if (kind === "werift") {
      channel.onMessage.subscribe((data) => received.push(new Uint8Array(data)));
      if (media) addAudioOfWerift();
    } else {
      channel.binaryType = "arraybuffer";
      channel.onmessage = ({ data }) => received.push(new Uint8Array(data));
      if (media) addAudioOfLibwebrtc();
    }
    return null;
  },

  offer: async () => described(await connection.createOffer()),

  async answer(offer) {
    await connection.setRemoteDescription(offer);
    return described(await connection.createAnswer());
  },

  async accept(answer) {
    await connection.setRemoteDescription(answer);
    return null;
  },

  async outcome() {
    await eventually(() => ["connected", "failed"].includes(connection.connectionState));
    return connection.connectionState;
  },

  async send({ count, size }) {
    await eventually(() => channel.readyState === "open");
    for (let number = 0; number < count; number += 1) channel.send(Buffer.from(message(number, size)));
    return null;
  },

  async receive({ count, size }) {
    await eventually(() => received.length >= count);
    received.forEach((bytes, number) => {
      if (Buffer.compare(bytes, message(number, size)) !== 0) throw new Error(`message ${number} is not the one sent`);
    });
    return received.length;
  },

  async listen({ frames: wanted }) {
    await eventually(() => frames >= wanted);
    return frames;
  },

  async close() {
    clearInterval(timer);
    await connection.close();
    return null;
  },
};

const input = createInterface({ input: process.stdin });
input.on("line", async (line) => {
  const { id, call, argument } = JSON.parse(line);
  try {
    process.stdout.write(`${JSON.stringify({ id, result: await calls[call](argument) })}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify({ id, error: String(error) })}\n`);
  }
});
input.on("close", () => process.exit(0));
