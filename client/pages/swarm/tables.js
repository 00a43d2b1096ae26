// Nodes and links as tables: all that the map shows, for those who read it, and in the order they choose.

import { blocks, duration, keyed, make, number, percent, plural, write } from "./dom.js";
import { nodeName } from "./labels.js";

const STEP = matchMedia("(max-width: 40rem)").matches ? 25 : 200; // lines that are shown at once
const MOST_LINKS = 200;

const text = (value) => value || "–";
const figure = (value) => (value ? number(value) : "–");

/** [id, heading, what a line is ordered by, what it says, whether it is a number] */
const COLUMNS = [
  ["node", "Node", (peer, node) => (node.name || "~") + peer.slice(-6), (peer, node) => nodeName(peer, node)],
  ["model", "Model", (_, node, model) => model, (_, node, model) => model],
  ["blocks", "Blocks", (_, node) => node.first * 5000 + node.last, (_, node) => blocks(node.first, node.last), true],
  ["state", "State", (_, node) => node.state, (_, node) => node.state],
  ["speed", "Tokens/s", (_, node) => node.tokens_per_s, (_, node) => figure(node.tokens_per_s), true],
  ["token", "A token takes", (_, node) => node.ms_per_token, (_, node) => (node.ms_per_token ? duration(node.ms_per_token / 1000) : "–"), true],
  ["prefill", "Prefill/s", (_, node) => node.prefill, (_, node) => figure(node.prefill), true],
  ["queue", "Queue", (_, node) => node.queue_ms, (_, node) => (node.queue_ms ? duration(node.queue_ms / 1000) : "–"), true],
  ["sessions", "Sessions", (_, node) => node.sessions, (_, node) => figure(node.sessions), true],
  ["kv", "KV used", (_, node) => used(node), (_, node) => (node.kv_total ? percent(used(node)) : "–"), true],
  ["states", "States used", (_, node) => busyStates(node), (_, node) => (node.states_total ? `${busyStates(node)} of ${node.states_total}` : "–"), true],
  ["device", "Device", (_, node) => node.device, (_, node) => text(node.device)],
  ["weights", "Weights", (_, node) => node.weights, (_, node) => text(node.weights)],
  ["way", "Reached", (_, node) => node.way, (_, node) => node.way],
  ["version", "Version", (_, node) => node.version, (_, node) => text(node.version)],
];

const busyStates = (node) => node.states_total - node.states_free;
const used = (node) => (node.kv_total ? 1 - node.kv_free / node.kv_total : 0);

export class NodesTable {
  order = "blocks";
  descending = false;
  shown = STEP;

  constructor({ table, filter, count, more }) {
    this.table = table;
    this.filter = filter;
    this.count = count;
    this.more = more;
    for (const [id, heading, , , isNumber] of COLUMNS) {
      const button = make("button", { type: "button", text: heading });
      button.addEventListener("click", () => this.sortBy(id));
      table.tHead.rows[0].append(make("th", { scope: "col", "data-column": id, class: isNumber ? "num" : undefined }, button));
    }
    filter.addEventListener("input", () => this.render(this.state));
  }

  sortBy(id) {
    this.descending = this.order === id ? !this.descending : false;
    this.order = id;
    this.render(this.state);
  }

  render(state) {
    this.state = state;
    const [, , by] = COLUMNS.find(([id]) => id === this.order);
    const modelName = (node) => state.item("models", node.model)?.name ?? "";
    const wanted = this.filter.value.trim().toLowerCase();
    const all = state.items("nodes");
    const lines = all
      .map(([peer, node]) => ({ peer, node, model: modelName(node) }))
      .filter(({ peer, node, model }) => !wanted || `${peer} ${COLUMNS.map(([, , , say]) => say(peer, node, model)).join(" ")}`.toLowerCase().includes(wanted))
      .map((line) => ({ ...line, by: by(line.peer, line.node, line.model) }))
      .sort((a, b) => (a.by < b.by ? -1 : a.by > b.by ? 1 : a.peer < b.peer ? -1 : 1));
    if (this.descending) lines.reverse();
    for (const heading of this.table.tHead.rows[0].cells) {
      const isOrder = heading.dataset.column === this.order;
      heading.setAttribute("aria-sort", isOrder ? (this.descending ? "descending" : "ascending") : "none");
    }
    write(this.count, lines.length === all.length ? `${all.length}` : `${lines.length} of ${all.length}`);
    keyed(this.table.tBodies[0], lines.slice(0, this.shown).map((line) => [line.peer, line]), (peer) => this.makeRow(peer),
      (row, { peer, node, model }) => COLUMNS.forEach(([, , , say], i) => write(row.cells[i], say(peer, node, model))));
    this.renderMore(lines.length, state.swarm.not_shown);
  }

  renderMore(found, notSent) {
    const hidden = Math.max(0, found - this.shown);
    this.more.replaceChildren();
    if (hidden) {
      const button = make("button", { type: "button", text: `Show ${Math.min(STEP, hidden)} more of ${hidden}` });
      button.addEventListener("click", () => {
        this.shown += STEP;
        this.render(this.state);
      });
      this.more.append(button);
    }
    if (notSent) this.more.append(` ${plural(notSent, "node")} more: too many to list them here.`);
  }

  makeRow(peer) {
    const row = make("tr", { id: `node-${peer}`, tabindex: "-1" });
    for (const [, heading, , , isNumber] of COLUMNS) {
      row.append(make(row.cells.length ? "td" : "th", {
        scope: row.cells.length ? undefined : "row", "data-heading": heading, class: isNumber ? "num" : undefined,
        title: row.cells.length ? undefined : peer,
      }));
    }
    return row;
  }

  /** Go to the line of a node. */
  goTo(peer) {
    this.filter.value = "";
    this.shown = Math.max(this.shown, this.state.items("nodes").length);
    this.render(this.state);
    const row = document.getElementById(`node-${peer}`);
    row?.scrollIntoView({ block: "center" });
    row?.focus({ preventScroll: true });
  }
}

export function renderLinks(table, count, state) {
  const links = state.items("nodes").flatMap(([from, node]) => node.links.map(([to, ms, mbit]) => ({ from, to, ms, mbit })));
  links.sort((a, b) => a.ms - b.ms);
  write(count, `${links.length}`);
  const name = (peer) => nodeName(peer, state.item("nodes", peer));
  keyed(table.tBodies[0], links.slice(0, MOST_LINKS).map((link) => [`${link.from} ${link.to}`, link]),
    () => make("tr", {}, ...["From", "To", "Round trip", "Bandwidth"].map((heading, i) =>
      make("td", { "data-heading": heading, class: i > 1 ? "num" : undefined }))),
    (row, { from, to, ms, mbit }) => [name(from), name(to), duration(ms / 1000), mbit ? `${number(mbit)} Mbit/s` : "–"]
      .forEach((words, i) => write(row.cells[i], words)));
  return links.length;
}

export function renderFacts(list, facts) {
  keyed(list, facts, () => make("div", {}, make("dt"), make("dd")), (entry, value, name) => {
    write(entry.firstChild, name);
    write(entry.lastChild, value);
  });
}
