// One side of a call, in a page. `window.call` holds what the rig may ask for; every function
// returns a value that survives JSON.

"use strict";

const call = (() => {
  let connection;
  let channel;
  let received = [];
  const candidateErrors = new Set();

  async function eventually(condition, what) {
    for (;;) {
      const value = await condition();
      if (value) return value;
      if (connection.connectionState === "failed") throw new Error(`connection failed before: ${what}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  /** Makes the connection with a data channel and, if asked, media: the camera's (fake) video. */
  async function open({ configuration, media }) {
    received = [];
    connection = new RTCPeerConnection(configuration);
    connection.addEventListener("icecandidateerror", (event) => {
      candidateErrors.add(`${event.url}: ${event.errorCode} ${event.errorText}`);
      console.log("icecandidateerror", event.url, event.errorCode, event.errorText);
    });
    connection.addEventListener("connectionstatechange", () => {
      console.log("connectionState", connection.connectionState);
    });
    channel = connection.createDataChannel("ferry", { negotiated: true, id: 0 });
    channel.binaryType = "arraybuffer";
    channel.addEventListener("message", (event) => received.push(new Uint8Array(event.data)));
    if (media) {
      const constraints = { video: { width: 320, height: 240, frameRate: 10 } };
      const stream = await navigator.mediaDevices.getUserMedia(constraints);
      for (const track of stream.getTracks()) connection.addTrack(track, stream);
    }
    return null;
  }

  /** Sets the local description and waits for its last candidate. */
  async function describe(description) {
    await connection.setLocalDescription(description);
    await eventually(() => connection.iceGatheringState === "complete", "candidates gathered");
    const sdp = connection.localDescription.sdp;
    const types = [...sdp.matchAll(/^a=candidate:.* typ (\w+)/gm)].map((match) => match[1]);
    return { type: connection.localDescription.type, sdp, types, candidateErrors: [...candidateErrors] };
  }

  async function offer() {
    return describe(await connection.createOffer());
  }

  async function answer({ type, sdp }) {
    await connection.setRemoteDescription({ type, sdp });
    return describe(await connection.createAnswer());
  }

  async function accept({ type, sdp }) {
    await connection.setRemoteDescription({ type, sdp });
    return null;
  }

  /** "connected" or "failed", whichever comes first. */
  async function outcome() {
    for (;;) {
      const state = connection.connectionState;
      if (state === "connected" || state === "failed") return state;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  /** Every message is its number in two bytes, then bytes counted up from that number. */
  function message(number, size) {
    const bytes = new Uint8Array(size).map((_, index) => number + index);
    new DataView(bytes.buffer).setUint16(0, number);
    return bytes;
  }

  async function send({ count, size }) {
    await eventually(() => channel.readyState === "open", "data channel opened");
    for (let number = 0; number < count; number += 1) channel.send(message(number, size));
    return null;
  }

  /** Resolves when `count` messages have arrived, in order and unharmed. */
  async function receive({ count, size }) {
    await eventually(() => received.length >= count, "messages received");
    received.forEach((bytes, number) => {
      const wanted = message(number, size);
      if (bytes.length !== size || bytes.some((byte, index) => byte !== wanted[index])) {
        throw new Error(`message ${number} of ${bytes.length} bytes is not the one sent`);
      }
    });
    return received.length;
  }

  async function statistics(type) {
    return [...(await connection.getStats()).values()].filter((entry) => entry.type === type);
  }

  async function inboundVideo() {
    const [entry] = (await statistics("inbound-rtp")).filter((inbound) => inbound.kind === "video");
    return entry?.framesDecoded ? entry : undefined;
  }

  /** Resolves when the peer's video has been decoded for `frames` more frames than at first sight. */
  async function watch({ frames }) {
    const first = await eventually(inboundVideo, "video decoded");
    const last = await eventually(async () => {
      const now = await inboundVideo();
      return now.framesDecoded >= first.framesDecoded + frames && now;
    }, "video goes on");
    return {
      frames: last.framesDecoded - first.framesDecoded,
      bytes: last.bytesReceived - first.bytesReceived,
    };
  }

  /** The two candidates in use. */
  async function selectedPair() {
    const [transport] = await statistics("transport");
    const pairs = await statistics("candidate-pair");
    const pair = pairs.find(({ id, selected }) => selected || id === transport?.selectedCandidatePairId);
    if (!pair) throw new Error("no selected candidate pair");
    const report = await connection.getStats();
    const local = report.get(pair.localCandidateId);
    const remote = report.get(pair.remoteCandidateId);
    return { local: local.candidateType, remote: remote.candidateType, relayProtocol: local.relayProtocol ?? null };
  }

  function close() {
    connection.getSenders().forEach((sender) => sender.track?.stop());
    connection.close();
    return null;
  }

  return { open, offer, answer, accept, outcome, send, receive, watch, selectedPair, close };
})();
