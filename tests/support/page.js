// The page of examples/browser.html without a browser: its script with the little that it
// uses of one. Its WebSocket is at the far end of standard input and output, a JSON object
// a line, as are whoever looks at the page and clicks.
//
// node page.js PAGE STORAGE
"use strict";

const fs = require("node:fs");
const { webcrypto } = require("node:crypto");
const readline = require("node:readline");

const [page, storage] = process.argv.slice(2);
const html = fs.readFileSync(page, "utf8");
const script = html.match(/<script>\n([\s\S]*)<\/script>/)[1];

// Times pass faster here.
const HASTE = 20;
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n");

const elements = new Map();
for (const [tag, id] of html.matchAll(/<\w+[^>]* id="(\w+)"[^>]*>/g)) {
  const value = tag.match(/ value="([^"]*)"/);
  elements.set(id, { value: value ? value[1] : "", textContent: "" });
}
const document = {
  getElementById(id) {
    if (!elements.has(id)) throw new Error(`the page has no ${id}`);
    return elements.get(id);
  },
};

const stored = fs.existsSync(storage) ? JSON.parse(fs.readFileSync(storage, "utf8")) : {};
const localStorage = {
  getItem: (key) => (key in stored ? stored[key] : null),
  setItem(key, value) {
    stored[key] = String(value);
    fs.writeFileSync(storage + ".new", JSON.stringify(stored));
    fs.renameSync(storage + ".new", storage);
  },
};

const sockets = [];
class WebSocket {
  constructor(url) {
    this.number = sockets.push(this) - 1;
    say({ open: this.number, url });
  }
  send(text) {
    say({ send: this.number, text });
  }
  close() {
    say({ close: this.number });
  }
}

const later = (start) => (run, after) => start(run, after / HASTE);
const names = {
  document, localStorage, WebSocket, crypto: webcrypto,
  setTimeout: later(setTimeout), setInterval: later(setInterval), clearTimeout, clearInterval,
};
new Function(...Object.keys(names), script)(...Object.values(names));

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const { set, click, look, opened, message, closed, text, code } = JSON.parse(line);
  if (set) Object.entries(set).forEach(([id, value]) => { document.getElementById(id).value = value; });
  if (click) document.getElementById(click).onclick();
  if (look) say({ seen: String(document.getElementById(look).textContent) });
  if (opened !== undefined) sockets[opened].onopen();
  if (message !== undefined) sockets[message].onmessage({ data: text });
  if (closed !== undefined) sockets[closed].onclose({ code, reason: "" });
}).on("close", () => process.exit());
