// Packets of MQTT as npm's mqtt-packet reads and writes them. A line of JSON for each question:
// {"parse": HEX} is answered by what that is, a CONNECT telling the version of all that follow;
// {"make": PACKET, "version": N} by its bytes. Payloads are in hexadecimal digits.

const mqtt = require("mqtt-packet");

const parser = mqtt.parser();
let parsed = [];
parser.on("packet", (packet) => parsed.push(packet));
parser.on("error", (why) => parsed.push({ error: why.message }));

// Buffers as digits.
const shown = (value) => {
  if (Buffer.isBuffer(value)) return value.toString("hex");
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(shown);
  return Object.fromEntries(Object.entries(value).map(([name, value]) => [name, shown(value)]));
};

require("readline")
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const question = JSON.parse(line);
    let answer;
    if (question.make) {
      answer = mqtt.generate(question.make, { protocolVersion: question.version }).toString("hex");
    } else {
      parsed = [];
      const left = parser.parse(Buffer.from(question.parse, "hex"));
      answer = parsed.length === 1 && !left ? shown(parsed[0]) : { error: "not one packet", parsed, left };
    }
    console.log(JSON.stringify(answer));
  });
