// uWebSockets, as bun carries it: publish and subscribe as its documentation shows them. Executes the commands of
// `peers serve` (src/serve.rs). All clients subscribe with one id, so that one frame serves all of them.
const [, , protocol, serverInfo, advertise] = process.argv;
let id = 0; // The clients' subscription id, which is the topic as well.
let number = 0; // The number of the next message.

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch(request, server) {
    const upgraded = server.upgrade(request, { headers: { "Sec-WebSocket-Protocol": protocol } });
    return upgraded ? undefined : new Response("", { status: 400 });
  },
  websocket: {
    open: (socket) => [serverInfo, advertise].forEach((text) => socket.send(text)),
    message(socket, text) {
      const { op, subscriptions } = JSON.parse(text);
      if (op === "subscribe") socket.subscribe(String((id = subscriptions[0].id)));
    },
  },
});
console.log(`listening 127.0.0.1:${server.port}`);

// The clock begins with the process: `start` is the time by the clock that all processes share.
function publish(rate, millis, size, start) {
  const [begun, first, frame] = [Bun.nanoseconds(), number, Buffer.alloc(13 + size, 0x55)];
  const count = Math.max(1, Math.round((rate * millis) / 1000));
  number += count;
  (function next(sent) {
    for (; sent < count; sent++) {
      const due = Math.floor((sent * 1e9) / rate);
      const wait = (begun + due - Bun.nanoseconds()) / 1e6;
      if (wait > 0) return setTimeout(next, wait, sent);
      frame[0] = 1;
      frame.writeUInt32LE(id, 1);
      [start + due, first + sent, start + due].forEach((word, at) => frame.writeBigUInt64LE(BigInt(word), 5 + 8 * at));
      server.publish(String(id), frame);
    }
    console.log(`published ${first} ${sent}`);
  })(0);
}

for await (const line of console) {
  const [command, ...numbers] = line.split(" ");
  const { user, system } = process.cpuUsage();
  if (command === "publish") publish(...numbers.map(Number));
  else console.log(`${command} ${command === "cpu" ? (user + system) * 1000 : server.subscriberCount(String(id))}`);
}
