// The map of one model: its blocks from left to right, a bar for each node over the blocks it serves, a strip that
// says how many serve each block, and a line for the route of each answer.

import { blocks, draw, keyed, make, number, plural, write } from "./dom.js";
import { Gaps, listed } from "./gaps.js";
import { holdWords, label, nodeName, speedWords, stripText } from "./labels.js";
import { laneHeight, lanesOf, rulerStep } from "./lanes.js";
import { lostLately, routePath } from "./routes.js";
import { servedBy } from "./state.js";

const STRIP = 22;
const RULER = 20;

export class ModelMap {
  constructor(colours, onChosen) {
    this.colours = colours;
    this.onChosen = onChosen;
    this.chosen = null;
    this.name = make("h2");
    this.summary = make("p", { class: "summary" });
    this.gaps = new Gaps();
    this.strip = draw("g");
    this.ruler = draw("g", { class: "ruler" });
    this.bars = draw("g");
    this.routes = draw("g");
    this.picture = draw("svg", { "aria-hidden": "true" }, this.strip, this.ruler, this.bars, this.routes);
    this.tip = make("div", { class: "tip card", role: "status", hidden: "" });
    this.frame = make("div", { class: "map", tabindex: "0", role: "group" }, this.picture, this.tip);
    this.key = legend();
    this.element = make("article", { class: "card model" }, make("div", { class: "head" }, this.name, this.summary),
      this.gaps.element, this.frame, this.key);
    this.frame.addEventListener("keydown", (event) => this.onKey(event));
    this.frame.addEventListener("blur", () => this.choose(null));
    this.picture.addEventListener("pointerover", (event) => this.choose(peerAt(event)));
    this.picture.addEventListener("pointerleave", () => this.choose(null));
    this.picture.addEventListener("click", (event) => peerAt(event) && this.onChosen(peerAt(event)));
    new ResizeObserver(() => this.state && this.render(this.state, this.digest)).observe(this.frame);
  }

  render(state, digest) {
    this.state = state;
    this.digest = digest;
    const model = state.item("models", digest);
    if (!model) return;
    this.nodes = state.nodesOf(digest);
    write(this.name, model.name);
    this.renderWords(model);
    const width = Math.max(280, this.frame.clientWidth);
    const perBlock = width / model.blocks;
    this.renderStrip(model, perBlock);
    this.renderRuler(model, perBlock);
    const lanes = lanesOf(this.nodes);
    const height = laneHeight(lanes.length);
    const places = this.renderBars(lanes, height, perBlock);
    this.renderRoutes(places, height, perBlock);
    const whole = STRIP + RULER + lanes.length * height + 4;
    for (const [name, value] of Object.entries({ width, height: whole, viewBox: `0 0 ${width} ${whole}` })) {
      this.picture.setAttribute(name, value);
    }
    if (this.chosen) this.showTip();
  }

  renderWords(model) {
    const missing = servedBy(model, 0);
    const single = servedBy(model, 1);
    const said = [plural(model.online, "node"), plural(model.blocks, "block"), `${number(model.tokens_per_s)} tokens/s`];
    const networks = model.networks > 1 ? [`${model.networks} networks`] : [];
    write(this.summary, [...said, ...networks].join(" · "));
    this.frame.setAttribute("aria-label",
      `Map of ${model.name}: ${plural(model.online, "node")} over ${plural(model.blocks, "block")}. ` +
      (missing.length ? `Nobody serves blocks ${listed(missing)}. ` : "All blocks are served. ") +
      (single.length ? `One node alone serves blocks ${listed(single)}. ` : "") +
      "Arrow keys go from node to node, Enter goes to its line in the table.");
    this.gaps.render(model, missing, single);
  }

  renderStrip(model, perBlock) {
    const most = Math.max(...model.coverage.map(([, , servers]) => servers), 1);
    keyed(this.strip, model.coverage.map(([first, last, servers]) => [first, { last, servers }]),
      () => draw("g", {}, draw("rect", { height: STRIP - 4, rx: 3 }),
        draw("text", { y: STRIP - 9, class: "strip-text" })),
      (group, { last, servers }, first) => {
        const [rect, text] = group.children;
        const wide = (last - first + 1) * perBlock;
        group.setAttribute("class", servers === 0 ? "none" : servers === 1 ? "one" : "some");
        group.style.setProperty("--part", `${Math.round(30 + 70 * (servers / most))}%`);
        rect.setAttribute("x", first * perBlock + 0.5);
        rect.setAttribute("width", Math.max(1, wide - 1));
        text.setAttribute("x", first * perBlock + wide / 2);
        write(text, stripText(servers, wide));
      });
  }

  renderRuler(model, perBlock) {
    const step = rulerStep(perBlock);
    const marks = [];
    for (let block = 0; block < model.blocks; block += step) marks.push([block, block]);
    keyed(this.ruler, marks, () => draw("text", { y: STRIP + 10 }), (text, block) => {
      text.setAttribute("x", block * perBlock + 2);
      write(text, `${block}`);
    });
  }

  /** Returns where each node's bar is: its lane, by peer. */
  renderBars(lanes, height, perBlock) {
    const lost = lostLately(this.state);
    const own = this.state.item("own", "work")?.peer_id;
    this.key.lastChild.hidden = !own;
    const busiest = Math.max(1, ...this.nodes.map(([, node]) => node.tokens_per_s));
    const places = new Map();
    const bars = lanes.flatMap((lane, number) => lane.map(([peer, node]) => [peer, { node, number }]));
    const thick = Math.max(3, height - (height > 12 ? 6 : 2));
    keyed(this.bars, bars,
      (peer) => draw("g", { "data-peer": peer }, draw("rect"), draw("text")),
      (group, { node, number: lane }, peer) => {
        const [rect, text] = group.children;
        const top = STRIP + RULER + lane * height;
        const wide = (node.last - node.first + 1) * perBlock - 2;
        places.set(peer, top + (thick > 24 ? thick - 8 : thick / 2)); // below a label, where there is room
        const kinds = { own: peer === own, chosen: peer === this.chosen, lost: lost.has(peer) };
        const marks = Object.keys(kinds).filter((kind) => kinds[kind]);
        group.setAttribute("class", ["bar", node.state, ...marks].join(" "));
        group.style.setProperty("--load", `${Math.round(100 * (node.tokens_per_s / busiest))}%`);
        const shape = { x: node.first * perBlock + 1, y: top, width: Math.max(2, wide), height: thick };
        for (const [name, value] of Object.entries({ ...shape, rx: Math.min(6, thick / 2) })) rect.setAttribute(name, value);
        text.setAttribute("x", node.first * perBlock + 9);
        text.setAttribute("y", top + Math.min(thick / 2 + 4, 16));
        write(text, thick >= 16 ? label(peer, node, wide) : "");
      });
    return places;
  }

  renderRoutes(places, height, perBlock) {
    const running = this.state.items("answers")
      .filter(([, answer]) => answer.hops.some(([peer]) => places.has(peer)));
    keyed(this.routes, running.map(([id, answer], number) => [id, { answer, number }]),
      (id) => draw("path", { class: `route colour-${this.colours.of(id)}` }),
      (path, { answer, number }) => {
        const room = height > 24 ? 4 : height / 3;
        const spread = Math.min(4, room) * (number - (running.length - 1) / 2);
        const aside = Math.max(-room, Math.min(room, spread));
        path.setAttribute("d", routePath(answer.hops, places, perBlock, aside));
        path.classList.toggle("waits", Boolean(answer.waiting));
      });
  }

  choose(peer) {
    if (peer === this.chosen) return;
    for (const group of this.bars.children) group.classList.toggle("chosen", group.dataset.peer === peer);
    this.chosen = peer;
    this.tip.hidden = !peer;
    if (peer) this.showTip();
  }

  showTip() {
    const node = this.state.item("nodes", this.chosen);
    const bar = this.bars.keyed?.get(this.chosen)?.firstChild;
    if (!node || !bar) return this.choose(null);
    this.tip.replaceChildren(make("strong", { text: nodeName(this.chosen, node) }),
      make("span", { class: "dim", text: ` blocks ${blocks(node.first, node.last)} · ${node.state}` }),
      make("div", { text: speedWords(node) }), make("div", { class: "dim", text: holdWords(node) }));
    const left = Number(bar.getAttribute("x"));
    const room = this.frame.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(left, room))}px`;
    this.tip.style.top = `${Number(bar.getAttribute("y")) + Number(bar.getAttribute("height")) + 6}px`;
  }

  onKey(event) {
    const order = [...(this.bars.keyed?.keys() ?? [])];
    const now = order.indexOf(this.chosen);
    const [next, before] = [now + 1, now - 1];
    const to = { ArrowRight: next, ArrowDown: next, ArrowLeft: before, ArrowUp: before, Home: 0, End: order.length - 1 };
    if (event.key in to && order.length) {
      event.preventDefault();
      this.choose(order[Math.max(0, Math.min(order.length - 1, to[event.key]))]);
    } else if (event.key === "Enter" && this.chosen) this.onChosen(this.chosen);
    else if (event.key === "Escape") this.choose(null);
  }
}

function peerAt(event) {
  return event.target.closest?.("[data-peer]")?.dataset.peer ?? null;
}

function legend() {
  const entries = [["none", "nobody"], ["one", "one server"], ["some", "more"], ["idle", "idle node"], ["busy", "busy node"],
    ["joining", "loading"], ["lost", "just lost by a route"], ["own", "this node"]];
  return make("ul", { class: "plain legend" }, ...entries.map(([kind, text]) =>
    make("li", {}, make("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), text)));
}
