// What happened since the page was opened, and the repairs before it. What matters most is said to screen readers.

import { at, blocks, clock, duration, keyed, make, write } from "./dom.js";
import { nodeName } from "./labels.js";
import { servedBy } from "./state.js";

const MOST = 60;
const SAY_EVERY_MS = 5000;

export class Feed {
  entries = []; // [key, {at, kind, text}], newest first
  nodes = null;
  gaps = new Map(); // by model
  repairs = new Set(); // ids of those that were noted
  toSay = [];

  /** Take notice of what became different. */
  look(state) {
    const repairs = state.items("repairs");
    for (const [id, repair] of repairs) if (!this.repairs.has(id)) this.noteRepair(state, id, repair);
    this.repairs = new Set(repairs.map(([id]) => id));
    const now = new Map(state.items("nodes").filter(([, node]) => node.state === "online"));
    if (this.nodes) {
      for (const [peer, node] of now) if (!this.nodes.has(peer)) this.note("joined", peer, node, "serves");
      for (const [peer, node] of this.nodes) if (!now.has(peer)) this.note("left", peer, node, "no longer serves");
    }
    this.nodes = state.swarm.problem ? this.nodes : now;
    for (const [digest, model] of state.models) this.noteGaps(digest, model);
    this.entries.sort(([, a], [, b]) => b.at - a.at);
    this.entries.length = Math.min(this.entries.length, MOST);
  }

  render(list) {
    keyed(list, this.entries, () => make("li", {}, make("time"), make("span")), (line, { at, kind, text }) => {
      line.className = `event ${kind}`;
      write(line.firstChild, clock(at));
      write(line.lastChild, text);
    });
  }

  noteRepair(state, id, repair) {
    const lost = repair.lost.map((peer) => nodeName(peer, state.item("nodes", peer))).join(", ");
    const what = lost ? `Route repaired: ${lost} was replaced` : "Route repaired";
    const why = repair.cause ? ` (${repair.cause})` : "";
    this.add(id, repair.at, "repaired", `${what} in ${duration(repair.seconds)}${why}`);
    this.say(`${what}.`);
  }

  note(kind, peer, node, does) {
    this.add(`${kind} ${peer} ${Date.now()}`, Date.now() / 1000, kind,
      `${nodeName(peer, node)} ${does} blocks ${blocks(node.first, node.last)}`);
  }

  noteGaps(digest, model) {
    const missing = servedBy(model, 0).map(([first, last]) => blocks(first, last)).join(", ");
    const before = this.gaps.get(digest);
    this.gaps.set(digest, missing);
    if (before === undefined || before === missing) return;
    const text = missing ? `Nobody serves blocks ${missing} of ${model.name}` : `All blocks of ${model.name} are served`;
    this.add(`${digest} ${Date.now()}`, Date.now() / 1000, missing ? "gap" : "filled", text);
    this.say(`${text}.`);
  }

  add(key, time, kind, text) {
    this.entries.push([key, { at: time, kind, text }]);
  }

  /** To screen readers: together, and not more often than every SAY_EVERY_MS. */
  say(text) {
    this.toSay.push(text);
    this.saying ??= setTimeout(() => {
      at("said").textContent = this.toSay.slice(-3).join(" ");
      this.toSay = [];
      this.saying = undefined;
    }, SAY_EVERY_MS);
  }
}
