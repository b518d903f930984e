// Node's own clients: node http.mjs URL HTTPS_URL CA. Prints what they found as JSON.
import { readFileSync } from "node:fs";
import http2 from "node:http2";

const [plain, secure, ca] = process.argv.slice(2);
const predict = JSON.stringify({ sequences: [{ text: "Hello" }] });

async function post(path, body, headers = {}) {
  const reply = await fetch(plain + path, { method: "POST", body, headers });
  if (!reply.ok) throw new Error(await reply.text());
  return reply;
}

const predicted = (await (await post("/v1/models/tiny:predict", predict)).json()).predictions[0].length;

const generating = await post("/v1/models/tiny:generate", JSON.stringify({ text: "A", max_tokens: 3 }), {
  Accept: "text/event-stream",
});
let text = "";
for await (const piece of generating.body.pipeThrough(new TextDecoderStream())) text += piece;
const events = [...text.matchAll(/^event: (.*)$/gm)].map((match) => match[1]);

const session = (await (await post("/v1/sessions", JSON.stringify({ model: "tiny" }))).json()).id;
const positions = await new Promise((resolve, reject) => {
  const found = [];
  const socket = new WebSocket(`${plain.replace("http", "ws")}/v1/sessions/${session}/stream`);
  socket.onerror = reject;
  socket.onopen = () => ["a", "b", "c"].forEach((letter) => socket.send(JSON.stringify({ text: letter })));
  socket.onmessage = ({ data }) => {
    if (found.push(JSON.parse(data).position) === 3) {
      socket.close();
      resolve(found);
    }
  };
});

const overHttp2 = await new Promise((resolve, reject) => {
  const connection = http2.connect(secure, { ca: readFileSync(ca) });
  connection.on("error", reject);
  const request = connection.request({ ":method": "POST", ":path": "/v1/models/tiny:predict" });
  let reply = "";
  request.setEncoding("utf8");
  request.on("data", (piece) => (reply += piece));
  request.on("error", reject);
  request.on("end", () => {
    connection.close();
    resolve(JSON.parse(reply).predictions[0].length);
  });
  request.end(predict);
});

console.log(JSON.stringify({ predicted, events, positions, http2: overHttp2 }));
