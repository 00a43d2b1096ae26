// The page of a swarm: what the server tells goes into the state, and from there into each part, once a frame.

import { renderAnswers } from "./answers.js";
import { Charts } from "./charts.js";
import { Connection } from "./connection.js";
import { at, bytes, commandBox, duration, keyed, make, number, plural, shortId, write } from "./dom.js";
import { Feed } from "./feed.js";
import { ModelMap } from "./map.js";
import { Colours } from "./routes.js";
import { State } from "./state.js";
import { NodesTable, renderFacts, renderLinks } from "./tables.js";
import { renderTiles } from "./tiles.js";

const state = new State();
const feed = new Feed();
const colours = new Colours();
const charts = new Charts(at("charts"));
const emptyCommand = commandBox();
const nodes = new NodesTable({ table: at("nodes"), filter: at("filter"), count: at("nodes-count"), more: at("nodes-more") });
let drawing = 0;

at("empty-command").append(emptyCommand);

const connection = new Connection("swarm/events", {
  event(name, data) {
    state.apply(name, data);
    drawing ||= requestAnimationFrame(render);
  },
  up() {
    at("key-form").hidden = true;
    showConnection("live", "Live");
  },
  down(why) {
    showConnection("lost", `Not connected: ${why}`);
  },
  key(problem) {
    at("key-form").hidden = false;
    write(at("key-problem"), problem);
    showConnection("lost", "A key is needed");
    at("key").focus();
  },
});

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (at("key").value) connection.useKey(at("key").value);
});

at("ranges").addEventListener("click", ({ target }) => {
  if (!target.dataset.hours) return;
  charts.hours = Number(target.dataset.hours);
  for (const button of at("ranges").children) button.setAttribute("aria-pressed", button === target);
  drawing ||= requestAnimationFrame(render);
});

function showConnection(kind, text) {
  at("connection").className = `pill ${kind}`;
  write(at("connection"), text);
}

function render() {
  drawing = 0;
  const { swarm } = state;
  const history = state.history;
  const counters = state.item("own", "counters");
  feed.look(state);
  at("chat-link").hidden = !swarm.has_chat;
  document.title = swarm.name ? `${swarm.name}: the swarm` : "swarm-node: the swarm";
  at("problem").hidden = !swarm.problem;
  write(at("problem"), swarm.problem ?? "");
  const isEmpty = !swarm.nodes && !swarm.problem;
  at("empty").hidden = !isEmpty;
  at("all").hidden = !swarm.nodes && !counters?.answers;
  if (isEmpty) renderEmpty(swarm);
  if (at("all").hidden) return;

  renderTiles(at("tiles"), state, history);
  keyed(at("maps"), state.models, makeMap, (element, _, digest) => element.map.render(state, digest));
  at("answers-part").hidden = !counters;
  const running = renderAnswers(at("answers"), state, colours);
  write(at("answers-count"), running ? `${running}` : "");
  at("answers-none").hidden = running > 0;
  feed.render(at("feed"));
  at("feed-none").hidden = feed.entries.length > 0;
  charts.render(history, Boolean(counters));
  renderOwn(state.item("own", "work"));
  nodes.render(state);
  at("links-part").hidden = !renderLinks(at("links"), at("links-count"), state);
  const leftOut = state.items("left_out");
  at("left-out-part").hidden = !leftOut.length;
  write(at("left-out-count"), `${leftOut.length}`);
  renderFacts(at("left-out"), leftOut.map(([peer, why]) => [shortId(peer), why]));
}

function makeMap() {
  const map = new ModelMap(colours, (peer) => nodes.goTo(peer));
  map.element.map = map;
  return map.element;
}

function renderEmpty(swarm) {
  emptyCommand.show(swarm.start);
  keyed(at("empty-wanted"), state.items("wanted"), () => make("li"), (line, { name, peers }) =>
    write(line, `${plural(peers, "peer")} would like to use ${name}`));
}

function renderOwn(work) {
  at("own-part").hidden = !work;
  if (!work) return;
  renderFacts(at("own"), [
    ["Tokens computed", number(work.tokens)],
    ["of prompts", number(work.prompt_tokens)],
    ["Peers served", number(work.peers)],
    ["Sessions open", number(work.sessions)],
    ["Running for", duration(work.uptime_s)],
    ["Bytes received", bytes(work.bytes_in)],
    ["Bytes sent", bytes(work.bytes_out)],
    ["Repairs helped with", number(work.repairs)],
  ]);
}

connection.run();
