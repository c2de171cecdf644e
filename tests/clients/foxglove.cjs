// Foxglove's own JavaScript client: `node foxglove.cjs URL TOPIC COUNT` prints COUNT messages of a topic as lines of JSON,
// and fails if the server sends a warning or an error.
const { FoxgloveClient } = require("@foxglove/ws-protocol");
const { WebSocket } = require("ws");

const [url, topic, count] = process.argv.slice(2);
const client = new FoxgloveClient({ ws: new WebSocket(url, [FoxgloveClient.SUPPORTED_SUBPROTOCOL]) });
const topics = new Map();
let left = Number(count);
let lastTime = 0n;

function fail(why) {
  console.error(why);
  process.exit(1);
}

client.on("error", (error) => fail(`connection: ${error.message ?? error}`));
client.on("close", () => fail("the server closed the connection"));
client.on("status", (status) => {
  if (status.level > 0) fail(`the server says: ${status.message}`);
});
client.on("time", ({ timestamp }) => {
  // A viewer takes an earlier time for a seek, and clears its plots.
  if (timestamp < lastTime) fail(`the time went back from ${lastTime} to ${timestamp}`);
  lastTime = timestamp;
});
client.on("advertise", (channels) => {
  for (const channel of channels) {
    if (channel.topic === topic) topics.set(client.subscribe(channel.id), channel);
  }
});
client.on("message", ({ subscriptionId, timestamp, data }) => {
  const channel = topics.get(subscriptionId);
  if (channel.encoding !== "json") fail(`unexpected encoding ${channel.encoding}`);
  const message = JSON.parse(new TextDecoder().decode(data));
  console.log(JSON.stringify({ topic: channel.topic, timestamp: String(timestamp), message }));
  left -= 1;
  if (left === 0) process.exit(0);
});
setTimeout(() => fail(`no ${count} messages of ${topic} within 20 s`), 20_000);
