// What is written on a map, and said of a node.

import { blocks, number, percent, plural, shortId } from "./dom.js";

const PER_LETTER = 6.9; // pixels, at the most

export const nodeName = (peer, node) => (node?.name ? `${node.name} (${shortId(peer)})` : shortId(peer));

/** As much as fits into a bar; "" where not even the id does. A name never stands without it: anybody may take any. */
export function label(peer, node, wide) {
  const id = peer.slice(-6);
  const name = node.name ? nodeName(peer, node) : id;
  const speed = node.tokens_per_s >= 0.1 ? ` · ${number(node.tokens_per_s)} tok/s` : "";
  const within = `${name} · ${blocks(node.first, node.last)}`;
  return [within + speed, within, name, id].find((words) => words.length * PER_LETTER <= wide - 14) ?? "";
}

export function stripText(servers, wide) {
  const words = servers ? `${servers}` : wide < 60 ? "0" : "nobody";
  return words.length * PER_LETTER <= wide - 4 ? words : "";
}

export function speedWords(node) {
  const parts = [`${number(node.tokens_per_s)} tokens/s now`, plural(node.sessions, "session")];
  if (node.queue_ms) parts.push(`${number(node.queue_ms)} ms queue`);
  if (node.ms_per_token) parts.push(`${number(node.ms_per_token)} ms a token`);
  return parts.join(" · ");
}

export function holdWords(node) {
  const parts = [node.device, node.weights, node.version && `version ${node.version}`].filter(Boolean);
  if (node.kv_total) parts.push(`KV ${percent(1 - node.kv_free / node.kv_total)} used`);
  if (node.states_total) parts.push(`states of ${number(node.states_total - node.states_free)} of ${plural(node.states_total, "session")} used`);
  return parts.join(" · ");
}
