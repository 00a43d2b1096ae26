// The models of the gateway, and which of them the swarm can serve now.

import { shortId } from "../shared/dom.js";
import { request } from "./api.js";

/** Milliseconds between two looks at a model that cannot be served yet. */
const LOOK_MS = 2000;

/** Every model that this gateway was started with: `{id, context, available, waitsFor, commands, sampling}`. */
export async function readModels(signal) {
  const listing = await (await request("v1/models", { signal })).json();
  return [...listing.data, ...listing.unavailable.filter((model) => model.owned_by)].map((model) => ({
    id: model.id,
    context: model.max_model_len,
    sampling: model.default_sampling ?? {},
    available: model.swarm.available,
    waitsFor: waitsFor(model.swarm),
    commands: model.swarm.serve_commands,
  }));
}

function waitsFor(swarm) {
  if (swarm.available) return "";
  const blocks = swarm.missing_blocks.join(", ");
  const loading = swarm.loading.map((node) => `${shortId(node.peer_id, node.name)} is loading ${node.blocks}`);
  return `Waiting for blocks ${blocks}` + (loading.length ? `; ${loading.slice(0, 3).join(" and ")}` : ", which nobody serves");
}

/** Resolves once the model can be served. `told(model)` while it cannot. Rejects as `signal` says. */
export async function untilAvailable(id, signal, told) {
  for (;;) {
    const model = (await readModels(signal)).find((each) => each.id === id);
    if (!model || model.available) return; // of one that is gone, the answer says so
    told(model);
    await pause(LOOK_MS, signal);
  }
}

export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", stopped);
    function done() {
      signal?.removeEventListener("abort", stopped);
      resolve();
    }
    function stopped() {
      clearTimeout(timer);
      reject(signal.reason);
    }
    if (signal?.aborted) stopped();
  });
}
