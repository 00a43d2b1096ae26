// The gateway's API as this page uses it. Addresses are relative: a proxy may put a path before them.

import { eventsOf } from "../shared/events.js";
import { authorization, keepKey, key } from "../shared/key.js";

/** Why a request failed. `status`: of HTTP, 0 where nothing answered. `code`: the gateway's word for it.
 * `commands`: what would help, to be typed in a terminal. */
export class Problem extends Error {
  constructor(message, { status = 0, code = "", commands = [] } = {}) {
    super(message);
    Object.assign(this, { status, code, commands });
  }

  static of(error, status) {
    const { message, code, serve_commands: commands } = error ?? {};
    return new Problem(message || `The gateway answered with status ${status}.`, {
      status,
      code: code ?? "",
      commands: commands ?? [],
    });
  }
}

let askForKey = async () => null;

/** `ask(wrong)` gives a key from a person, or null; `wrong`: the last one was. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** A reply with a good status. Raises Problem. Where the gateway wants a key, a person is asked for one. */
export async function request(path, options = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization() } });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Problem("The gateway cannot be reached. Is it still running? Start it again, then try again.");
    }
    if (response.ok) return response;
    const problem = Problem.of(await errorOf(response), response.status);
    if (problem.status !== 401) throw problem;
    const given = await askForKey(Boolean(key()));
    if (!given) throw problem;
    keepKey(given);
  }
}

async function errorOf(response) {
  try {
    return (await response.json()).error;
  } catch {
    return null;
  }
}

/** The JSON objects of a stream. Raises Problem for one that ends before it says that it does. */
export async function* chunksOf(response) {
  try {
    for await (const { data } of eventsOf(response)) {
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  throw new Problem("The connection to the gateway broke off.");
}
