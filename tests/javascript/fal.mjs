// fal's own JavaScript client, unmodified, against the address in API. Each scenario prints what it saw as JSON.
//   node fal.mjs SCENARIO < {"input": {...}, "picture": base64, "mask": base64}
import { readFileSync } from "node:fs";
import { createFalClient } from "@fal-ai/client";

const API = process.env.API;
const APP = "fal-ai/inpaint";
const HOSTS = { "queue.fal.run": "queue", "fal.run": "run", "rest.fal.ai": "rest", "v3.fal.media": "cdn" };

const fal = createFalClient({
  credentials: process.env.FAL_KEY,
  requestMiddleware: async (request) => {
    const url = new URL(request.url);
    const prefix = HOSTS[url.host];
    return prefix ? { ...request, url: `${API}/${prefix}${url.pathname}${url.search}` } : request;
  },
});
const proxied = createFalClient({
  credentials: process.env.FAL_KEY,
  proxyUrl: { url: `${API}/api/fal/proxy`, when: "always" },
});

const given = JSON.parse(readFileSync(0, "utf8"));
const blob = (base64) => new Blob([Buffer.from(base64, "base64")], { type: "image/png" });
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const untilCompleted = async (requestId) => {
  while ((await fal.queue.status(APP, { requestId })).status !== "COMPLETED") await pause(20);
};

const subscribe = async (options, client = fal) => {
  const updates = [];
  const onQueueUpdate = (update) =>
    updates.push({ status: update.status, logs: (update.logs ?? []).map((log) => log.message) });
  const { data, requestId } = await client.subscribe(APP, { input: given.input, logs: true, onQueueUpdate, ...options });
  return { updates, data, requestId };
};
const failure = (error) => ({
  name: error.name,
  status: error.status,
  message: error.message,
  requestId: error.requestId,
  fields: error.fieldErrors?.map((each) => each.loc),
});
const caught = async (promise) => promise.then(() => null, failure);

const scenarios = {
  polling: () => subscribe({ mode: "polling", pollInterval: 50 }),
  streaming: () => subscribe({ mode: "streaming" }),
  proxy: () => subscribe({ mode: "polling", pollInterval: 50 }, proxied),
  run: () => fal.run(APP, { input: given.input }),
  stream: async () => {
    const stream = await fal.stream(APP, { input: given.input });
    const events = [];
    for await (const event of stream) events.push(event);
    return { events, done: await stream.done(), requestId: stream.requestId };
  },
  cancel: async () => {
    const { request_id: requestId } = await fal.queue.submit(APP, { input: given.input, priority: "low" });
    while (!(await fal.queue.status(APP, { requestId, logs: true })).logs?.length) await pause(20);
    await fal.queue.cancel(APP, { requestId });
    await untilCompleted(requestId);
    const result = await caught(fal.queue.result(APP, { requestId }));
    return { requestId, result, again: await caught(fal.queue.cancel(APP, { requestId })) };
  },
  upload: async () => {
    const image_url = await fal.storage.upload(blob(given.picture), { lifecycle: { expiresIn: "1h" } });
    // A Blob inside the input is uploaded by the client itself.
    return { image_url, ...(await fal.run(APP, { input: { ...given.input, image_url, mask_url: blob(given.mask) } })) };
  },
  parts: async () => ({ link: await fal.storage.upload(new Blob([Buffer.alloc(given.bytes, "inpaintd")])) }),
  invalid: async () => ({ ...(await caught(fal.subscribe(APP, { input: { ...given.input, seed: "x" } }))) }),
  stranger: async () => caught(createFalClient({ ...fal, credentials: "wrong", requestMiddleware: async (request) => ({ ...request, url: request.url.replace("https://queue.fal.run", `${API}/queue`) }) }).queue.submit(APP, { input: {} })),
};

console.log(JSON.stringify(await scenarios[process.argv[2]]()));
process.exit(0);
