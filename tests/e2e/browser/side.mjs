// One browser inside a namespace, driven by JSON lines: the rig writes {id, call, argument}, this
// program answers {id, result} or {id, error}. The browser's console goes to stderr.
//
// Usage: side.mjs chromium|firefox EXECUTABLE PROFILE

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import puppeteer from "puppeteer-core";

const [browserName, executablePath, userDataDir] = process.argv.slice(2);

const CHROMIUM_ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--use-fake-device-for-media-stream=fps=10",
  "--use-fake-ui-for-media-stream",
  "--disable-features=WebRtcHideLocalIpsWithMdns",
];

const FIREFOX_PREFERENCES = {
  "media.navigator.streams.fake": true,
  "media.navigator.permission.disabled": true,
  "media.peerconnection.ice.obfuscate_host_addresses": false,
  "network.captive-portal-service.enabled": false,
  "network.connectivity-service.enabled": false,
};

function launch() {
  const common = { executablePath, userDataDir, headless: true, protocolTimeout: 0, timeout: 120_000 };
  if (browserName === "firefox") {
    return puppeteer.launch({ ...common, browser: "firefox", extraPrefsFirefox: FIREFOX_PREFERENCES });
  }
  return puppeteer.launch({ ...common, browser: "chrome", args: CHROMIUM_ARGUMENTS });
}

/** getUserMedia needs a secure context, which http://localhost is. */
async function servePage() {
  const types = { "/page.html": "text/html", "/call.js": "text/javascript" };
  const server = createServer(async (request, response) => {
    const type = types[request.url];
    if (!type) return response.writeHead(404).end();
    const body = await readFile(new URL(`.${request.url}`, import.meta.url));
    response.writeHead(200, { "Content-Type": type }).end(body);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://localhost:${server.address().port}/page.html`;
}

const url = await servePage();
const browser = await launch();
let page;

/** A page of its own for each call, so that nothing of the last one is left. */
async function newPage() {
  const previous = page;
  page = await browser.newPage();
  page.on("console", (message) => console.error(`[${message.type()}] ${message.text()}`));
  page.on("pageerror", (error) => console.error(`[pageerror] ${error.message}`));
  await page.goto(url);
  await previous?.close();
  return await browser.version();
}

async function perform({ call: name, argument }) {
  if (name === "newPage") return newPage();
  return page.evaluate((name, argument) => call[name](argument), name, argument ?? null);
}

function respond(message) {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}

const input = createInterface({ input: process.stdin });
input.on("line", async (line) => {
  const { id, ...request } = JSON.parse(line);
  try {
    respond({ id, result: await perform(request) });
  } catch (error) {
    respond({ id, error: error.message });
  }
});
input.on("close", async () => {
  await browser.close();
  process.exit(0);
});
