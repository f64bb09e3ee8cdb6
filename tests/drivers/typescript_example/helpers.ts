// What the vendor's example expects of its helpers, on the messages that are compiled from our own .proto files.
import fs from "fs";
import { grpc } from "@improbable-eng/grpc-web";
import * as Generation from "./generation/generation_pb";

type Asked = {
  initImage: Buffer;
  maskImage: Buffer;
  prompts: { text: string; weight?: number }[];
  seed: number;
  samples: number;
  cfgScale: number;
  steps: number;
  sampler: Generation.DiffusionSampler;
};

const artifact = (type: Generation.ArtifactType, binary: Buffer, parameters?: Generation.PromptParameters) =>
  Generation.Prompt.create({
    parameters,
    prompt: {
      oneofKind: "artifact",
      artifact: Generation.Artifact.create({ type, data: { oneofKind: "binary", binary } }),
    },
  });

export function buildGenerationRequest(engineId: string, asked: Asked & { type: string }): Generation.Request {
  return Generation.Request.create({
    engineId,
    requestedType: Generation.ArtifactType.ARTIFACT_IMAGE,
    prompt: [
      ...asked.prompts.map(({ text, weight }) =>
        Generation.Prompt.create({ parameters: { weight }, prompt: { oneofKind: "text", text } }),
      ),
      artifact(Generation.ArtifactType.ARTIFACT_IMAGE, asked.initImage, { init: true }),
      artifact(Generation.ArtifactType.ARTIFACT_MASK, asked.maskImage),
    ],
    params: {
      oneofKind: "image",
      image: Generation.ImageParameters.create({
        seed: [asked.seed],
        samples: BigInt(asked.samples),
        steps: BigInt(asked.steps),
        transform: { type: { oneofKind: "diffusion", diffusion: asked.sampler } },
        parameters: [
          Generation.StepParameter.create({ sampler: { cfgScale: asked.cfgScale }, schedule: { start: 1 } }),
        ],
      }),
    },
  });
}

export function executeGenerationRequest(client: { host: string }, request: Generation.Request, metadata: grpc.Metadata) {
  return new Promise<Generation.Artifact[]>((resolve, reject) => {
    const images: Generation.Artifact[] = [];
    grpc.invoke<any, any>(
      {
        methodName: "Generate",
        service: { serviceName: "gooseai.GenerationService" },
        requestStream: false,
        responseStream: true,
        requestType: Generation.Request,
        responseType: { deserializeBinary: (bytes: Uint8Array) => Generation.Answer.fromBinary(bytes) },
      } as any,
      {
        host: client.host,
        request: { serializeBinary: () => Generation.Request.toBinary(request), toObject: () => request },
        metadata,
        onMessage: (answer: Generation.Answer) =>
          images.push(
            ...answer.artifacts.filter(
              (each) =>
                each.type === Generation.ArtifactType.ARTIFACT_IMAGE &&
                each.finishReason === Generation.FinishReason.NULL,
            ),
          ),
        onEnd: (code, message) => (code === grpc.Code.OK ? resolve(images) : reject(new Error(message))),
      },
    );
  });
}

export function onGenerationComplete(images: Generation.Artifact[]) {
  for (const image of images) {
    if (image.data.oneofKind === "binary") fs.writeFileSync(`image-${image.seed}.png`, image.data.binary);
  }
}
