// The figures at the top, each with the line of its last hour.

import { draw, keyed, make, number, percent, plural, write } from "./dom.js";
import { servedBy } from "./state.js";

const LINE = { width: 120, height: 28 };
const POINTS = 120;

export function renderTiles(element, state, history) {
  keyed(element, tiles(state, history), makeTile, (tile, { title, value, unit, note, tone, line }) => {
    const [heading, figure, text, picture] = tile.children;
    write(heading, title);
    write(figure.firstChild, value);
    write(figure.lastChild, unit ? ` ${unit}` : "");
    write(text, note);
    tile.className = `tile card ${tone ?? ""}`;
    const path = points(line);
    picture.firstChild.setAttribute("points", path && `0,${LINE.height} ${path} ${LINE.width},${LINE.height}`);
    picture.lastChild.setAttribute("points", path);
  });
}

function makeTile() {
  return make("div", { class: "tile card" }, make("h2"),
    make("p", { class: "figure" }, make("span"), make("small")), make("p", { class: "dim note" }),
    draw("svg", { "aria-hidden": "true", viewBox: `0 0 ${LINE.width} ${LINE.height}`, preserveAspectRatio: "none" },
      draw("polygon"), draw("polyline")));
}

function* tiles(state, history) {
  const { swarm } = state;
  const models = state.models.map(([, model]) => model);
  const lines = (name) => history.slice(-POINTS).map((sample) => sample[name] ?? 0);
  const total = models.reduce((sum, model) => sum + model.blocks, 0);
  const missing = models.reduce((sum, model) =>
    sum + servedBy(model, 0).reduce((blocks, [first, last]) => blocks + last - first + 1, 0), 0);
  const single = models.reduce((sum, model) => sum + servedBy(model, 1).length, 0);
  yield ["nodes", {
    title: "Nodes online", value: number(swarm.online), line: lines("nodes"),
    note: [swarm.nodes > swarm.online && `${number(swarm.nodes - swarm.online)} loading or leaving`,
      plural(swarm.networks, "network")].filter(Boolean).join(" · "),
  }];
  yield ["blocks", {
    title: "Blocks served", value: number(total - missing), unit: `of ${number(total)}`, line: lines("missing").map((n) => -n),
    tone: missing ? "bad" : single ? "warn" : "good",
    note: missing ? `${plural(missing, "block")} without a server`
      : single ? `${plural(single, "stretch", "stretches")} with one server` : "each by several nodes",
  }];
  yield ["speed", {
    title: "Throughput", value: number(models.reduce((sum, model) => sum + model.tokens_per_s, 0)), unit: "tokens/s",
    line: lines("tokens_per_s"), note: `${plural(models.reduce((sum, model) => sum + model.sessions, 0), "session")} open`,
  }];
  const nodes = state.items("nodes").map(([, node]) => node).filter((node) => node.state === "online");
  const kv = nodes.reduce((sum, node) => sum + node.kv_total, 0);
  const used = kv - nodes.reduce((sum, node) => sum + node.kv_free, 0);
  yield ["kv", {
    title: "KV cache in use", value: percent(kv ? used / kv : 0), line: lines("kv"), note: `${number(kv)} tokens in all`,
  }];
  const counters = state.item("own", "counters");
  if (!counters) return;
  yield ["answers", {
    title: "Answers here", value: number(counters.answers), line: lines("own_tokens_per_s"),
    note: `${number(state.items("answers").length)} running · ${plural(counters.tokens, "token")}`,
  }];
  const hour = history.slice(-360);
  const sum = (name) => hour.reduce((total, sample) => total + sample[name], 0);
  yield ["repairs", {
    title: "Repairs, last hour", value: number(sum("repairs")), line: lines("repairs"),
    note: `${number(sum("failed"))} of ${plural(sum("answers"), "answer")} failed`, tone: sum("failed") ? "warn" : undefined,
  }];
}

function points(values) {
  if (values.length < 6) return "";
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  return values.map((value, i) =>
    `${((i * LINE.width) / (values.length - 1)).toFixed(1)},${(LINE.height - 2 - ((LINE.height - 4) * (value - low)) / span).toFixed(1)}`,
  ).join(" ");
}
