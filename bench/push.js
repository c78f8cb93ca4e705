// The cheapest possible push in Node: one prepared frame, written to the raw socket of every WebSocket.
// POST /VERSION/SIZE pushes a text of SIZE bytes; GET / says when the last push began (milliseconds since 1970).
"use strict";
const http = require("node:http");
const crypto = require("node:crypto");

const DELAY_MILLISECONDS = 20; // so that the answer to the request does not delay the push
const sockets = new Set();
let began = 0;

// The milliseconds to add to performance.now() for the system's clock, which the kernel's stamps follow. It is read at
// the start of a millisecond, and again before each push, because performance.timeOrigin drifts from the system's clock.
function clockOffset() {
  const last = Date.now();
  let now = last;
  while (now === last) now = Date.now();
  return now - performance.now();
}

function frame(version, size) {
  const text = Buffer.from(`<article data-version="${version}">`.padEnd(size, "x"));
  const long = text.length > 65535;
  const head = Buffer.alloc(long ? 10 : text.length > 125 ? 4 : 2);
  head[0] = 0x81; // an unfragmented text frame
  head[1] = long ? 127 : head.length === 4 ? 126 : text.length;
  if (long) head.writeBigUInt64BE(BigInt(text.length), 2);
  else if (head.length === 4) head.writeUInt16BE(text.length, 2);
  return Buffer.concat([head, text]);
}

const server = http.createServer((request, response) => {
  if (request.method === "POST") {
    const [, version, size] = request.url.split("/");
    const bytes = frame(version, Number(size));
    setTimeout(() => {
      const offset = clockOffset();
      began = offset + performance.now();
      for (const socket of sockets) socket.write(bytes);
    }, DELAY_MILLISECONDS);
  }
  response.end(String(began));
});

server.on("upgrade", (request, socket) => {
  const key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455, 4.2.2
  const accept = crypto.createHash("sha1").update(key).digest("base64");
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
  socket.setNoDelay(true);
  sockets.add(socket);
  socket.on("error", () => {});
  socket.on("close", () => sockets.delete(socket));
});

server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.on("end", () => process.exit()).resume();
