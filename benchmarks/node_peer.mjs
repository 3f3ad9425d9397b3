// node-ipc as a contender: `node node_peer.mjs server PATH` or `client PATH`, which takes "what number" lines on
// stdin and answers with one figure per line. Copied next to a node_modules that has node-ipc before it runs.
import ipc from "node-ipc";
import readline from "node:readline";

const [role, path] = process.argv.slice(2);
const payload = { data: "x".repeat(64) };
ipc.config.silent = true;
ipc.config.id = "bench";

function serve() {
  let counted = 0;
  ipc.serve(path, () => {
    ipc.server.on("echo", (data, socket) => ipc.server.emit(socket, "echoed", data));
    ipc.server.on("item", () => { counted += 1; });
    ipc.server.on("count", (_, socket) => ipc.server.emit(socket, "counted", { counted }));
    console.log("ready");
  });
  ipc.server.start();
}

function client() {
  ipc.connectTo("bench", path, () => {
    const server = ipc.of.bench;
    server.on("connect", () => {
      console.log("ready");
      readline.createInterface({ input: process.stdin }).on("line", (line) => {
        const [what, number] = line.split(" ");
        work[what](server, Number(number));
      });
    });
  });
}

const work = {
  latency(server, number) {
    const durations = [];
    let began;
    const next = () => { began = process.hrtime.bigint(); server.emit("echo", payload); };
    const done = () => {
      durations.push(Number(process.hrtime.bigint() - began) / 1000);
      if (durations.length < number) { next(); return; }
      server.off("echoed", "*");
      durations.sort((a, b) => a - b);
      console.log(durations[durations.length >> 1]);
    };
    server.on("echoed", done);
    next();
  },
  requests(server, number) {
    const began = process.hrtime.bigint();
    let sent = 64, received = 0;
    server.on("echoed", () => {
      received += 1;
      if (sent < number) { sent += 1; server.emit("echo", payload); }
      else if (received === number) {
        server.off("echoed", "*");
        console.log(number / (Number(process.hrtime.bigint() - began) / 1e9));
      }
    });
    for (let i = 0; i < 64; i += 1) server.emit("echo", payload);
  },
  messages(server, number) {
    let began, goal = null, sent = 0;
    const batch = () => {  // in slices, so that node writes between them
      for (let i = 0; i < 1000 && sent < number; i += 1, sent += 1) server.emit("item", payload);
      if (sent < number) setImmediate(batch); else server.emit("count", {});
    };
    server.on("counted", ({ counted }) => {
      if (goal === null) { goal = counted + number; began = process.hrtime.bigint(); batch(); return; }
      if (counted < goal) { server.emit("count", {}); return; }
      server.off("counted", "*");
      console.log(number / (Number(process.hrtime.bigint() - began) / 1e9));
    });
    server.emit("count", {});
  },
};

if (role === "server") serve(); else client();
