// What the vendor's example has in scope before it begins: a client and its metadata, on the usual Node transport.
import { grpc } from "@improbable-eng/grpc-web";
import { NodeHttpTransport } from "@improbable-eng/grpc-web-node-http-transport";

grpc.setDefaultTransport(NodeHttpTransport());
const metadata = new grpc.Metadata();
metadata.set("Authorization", "Bearer " + process.env.API_KEY);
const client = { host: process.env.API_HOST as string };
