// Asks a reward server by @grpc/grpc-js, with the protos as they are shipped; prints JSON.
//
//     node node_client.js PROTOS ADDRESS QUESTION ANSWER…
const fs = require("fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");

const [protos, address, question, ...answers] = process.argv.slice(2);
const definition = loader.loadSync("guerdon/v1/reward.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
});
const { RewardService } = grpc.loadPackageDefinition(definition).guerdon.v1;
const client = new RewardService(address, grpc.credentials.createInsecure(), {
  "grpc.service_config": fs.readFileSync(`${protos}/service_config.json`, "utf8"),
});
const item = { prompt: { text: question }, responses: answers.map((text) => ({ text })) };

const score = (request) =>
  new Promise((resolve) =>
    client.Score(request, (error, reply) => resolve(error ? readError(error) : reply)),
  );

function readError(error) {
  const root = new protobuf.Root();
  root.resolvePath = (_, target) =>
    target.startsWith("google/protobuf") ? target : `${protos}/${target}`;
  root.loadSync(["google/rpc/status.proto", "google/rpc/error_details.proto"]);
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  const status = root.lookupType("google.rpc.Status").decode(bytes);
  const details = status.details.map((any) => {
    const type = root.lookupType(any.type_url.split("/").pop());
    return type.toObject(type.decode(any.value));
  });
  return { code: grpc.status[error.code], message: error.details, details };
}

const stream = (items) =>
  new Promise((resolve, reject) => {
    const call = client.ScoreStream();
    const found = {};
    call.on("data", (reply) => (found[reply.request_id] = reply));
    call.on("error", reject);
    call.on("end", () => resolve(found));
    items.forEach((each, place) =>
      call.write({ request_id: `r${place}`, model: "tiny", item: each }),
    );
    call.end();
  });

(async () => {
  const alone = answers.map((text) => ({ prompt: item.prompt, responses: [{ text }] }));
  const wrong = { ...item, responses: [{ text: "x".repeat(5000) }] };
  console.log(
    JSON.stringify({
      score: await score({ model: "tiny", items: [item] }),
      stream: await stream([...alone, wrong]),
      error: await score({ model: "tiny", items: [item, wrong] }),
    }),
  );
  client.close();
})();
