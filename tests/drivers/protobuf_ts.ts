// Calls Generate through @protobuf-ts/grpcweb-transport as stdin asks, and tells how it went. In and out: JSON.
import { readFileSync } from "node:fs";
import { GrpcWebFetchTransport } from "@protobuf-ts/grpcweb-transport";
import { GenerationServiceClient } from "./generation/api/dialects/stability/proto/generation.client";
import * as Generation from "./generation/api/dialects/stability/proto/generation";

const asked = JSON.parse(readFileSync(0, "utf8"));
const transport = new GrpcWebFetchTransport({ baseUrl: asked.host, format: asked.format });
const client = new GenerationServiceClient(transport);

const artifact = (type: Generation.ArtifactType, data: string) => ({
  prompt: {
    oneofKind: "artifact" as const,
    artifact: Generation.Artifact.create({
      type,
      data: { oneofKind: "binary", binary: Buffer.from(data, "base64") },
    }),
  },
});
const image = Generation.ImageParameters.create({
  samples: BigInt(asked.samples ?? 1),
  seed: asked.seed ? [asked.seed] : [],
  steps: BigInt(asked.steps ?? 20),
});
const request = Generation.Request.create({
  engineId: asked.engine,
  requestId: "from-a-browser",
  prompt: [
    // The mask before the picture, as some clients do.
    artifact(Generation.ArtifactType.ARTIFACT_MASK, asked.mask),
    artifact(Generation.ArtifactType.ARTIFACT_IMAGE, asked.init),
    { prompt: { oneofKind: "text", text: asked.prompt } },
  ],
  params: { oneofKind: "image", image },
});

async function main() {
  const told = { pictures: [] as unknown[], keepAlives: 0, firstAfter: -1, code: "OK", message: "" };
  const started = Date.now();
  const meta = { ...(asked.key ? { authorization: `Bearer ${asked.key}` } : {}), ...asked.meta };
  const options = { meta, ...(asked.timeout ? { timeout: asked.timeout } : {}) };
  try {
    const call = asked.chain
      ? client.chainGenerate(
          Generation.ChainRequest.create({
            requestId: "from-a-browser",
            stage: [
              {
                id: "Main",
                request,
                onStatus: [{ reason: [], action: [Generation.StageAction.PASS], target: "Asset", artifactType: [] }],
              },
              {
                id: "Asset",
                request: Generation.Request.create({
                  engineId: "asset-service",
                  params: { oneofKind: "asset", asset: Generation.AssetParameters.create({}) },
                }),
                onStatus: [],
              },
            ],
          }),
          options,
        )
      : client.generate(request, options);
    for await (const answer of call.responses) {
      if (told.firstAfter < 0) told.firstAfter = Date.now() - started;
      if (!answer.artifacts.length) told.keepAlives += 1;
      for (const each of answer.artifacts) {
        if (each.type === Generation.ArtifactType.ARTIFACT_IMAGE && each.data.oneofKind === "binary")
          told.pictures.push({ png: Buffer.from(each.data.binary).toString("base64"), seed: each.seed });
      }
    }
  } catch (error) {
    told.code = (error as { code: string }).code;
    told.message = decodeURIComponent((error as Error).message);
  }
  console.log(JSON.stringify(told));
}

main();
