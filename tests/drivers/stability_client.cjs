// Does with the package stability-client what stdin asks, and tells how it went. In and out: JSON.
const { readFileSync } = require("node:fs");
const { createRequire } = require("node:module");

const { generate } = createRequire(`${process.cwd()}/`)("stability-client");
const { init, mask, ...options } = JSON.parse(readFileSync(0, "utf8"));
const png = (data) => ({ mime: "image/png", content: Buffer.from(data, "base64") });
const pictures = [];

const call = generate({ ...options, noStore: true, imagePrompt: { ...png(init), mask: png(mask) } });
call.on("image", ({ buffer, seed, mimeType, classifications }) =>
  pictures.push({ png: buffer.toString("base64"), seed, mimeType, classifications }),
);
call.on("end", ({ isOk, status, message }) => console.log(JSON.stringify({ pictures, isOk, status, message })));
