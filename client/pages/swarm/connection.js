// The stream of events from the server, for as long as the page is open: it comes back by itself when it breaks.

import { eventsOf } from "../shared/events.js";
import { authorization, forgetKey, keepKey, key } from "../shared/key.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15000;
const SILENT_MS = 30000; // the server says something every ten seconds

export class Connection {
  /** `on`: `event(name, data)`, `up()`, `down(why)`, `key(problem)` where one is needed. */
  constructor(path, on) {
    this.path = path;
    this.on = on;
    this.wait = FIRST_WAIT_MS;
  }

  useKey(given) {
    keepKey(given);
    this.run();
  }

  async run() {
    for (;;) {
      try {
        if (!(await this.listen())) return;
      } catch (error) {
        this.on.down(error.name === "AbortError" ? "it said nothing for a while" : "it cannot be reached");
      }
      await new Promise((done) => setTimeout(done, this.wait));
      this.wait = Math.min(this.wait * 2, LONGEST_WAIT_MS);
    }
  }

  /** Until the stream ends. False where asking again is of no use. */
  async listen() {
    const aborting = new AbortController();
    let silence = setTimeout(() => aborting.abort(), SILENT_MS);
    try {
      const response = await fetch(this.path, {
        headers: authorization(),
        cache: "no-store",
        signal: aborting.signal,
      });
      if (!response.ok) return await this.refused(response);
      this.on.up();
      this.wait = FIRST_WAIT_MS;
      const heard = () => {
        clearTimeout(silence);
        silence = setTimeout(() => aborting.abort(), SILENT_MS);
      };
      for await (const { event, data } of eventsOf(response, heard)) {
        if (event) this.on.event(event, JSON.parse(data));
      }
      this.on.down("it ended the stream");
      return true;
    } finally {
      clearTimeout(silence);
    }
  }

  async refused(response) {
    const problem = (await response.json().catch(() => null))?.error;
    if (response.status === 401) {
      const was = key();
      forgetKey();
      this.on.key(was ? "That key is not one of this server's." : "");
      return false;
    }
    this.on.down(problem?.message ?? `it answered with status ${response.status}`);
    return response.status === 429 || response.status >= 500;
  }
}
