// The stream of events from the server, for as long as the page is open: it comes back by itself when it breaks.
// Not by EventSource, which cannot send a key.

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15000;
const SILENT_MS = 30000; // the server says something every ten seconds

const KEY = "swarm-node key"; // of this tab's storage

export class Connection {
  /** `on`: `event(name, data)`, `up()`, `down(why)`, `key(problem)` where one is needed. */
  constructor(path, on) {
    this.path = path;
    this.on = on;
    this.wait = FIRST_WAIT_MS;
  }

  useKey(key) {
    sessionStorage.setItem(KEY, key);
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
    const key = sessionStorage.getItem(KEY);
    const aborting = new AbortController();
    let silence = setTimeout(() => aborting.abort(), SILENT_MS);
    try {
      const response = await fetch(this.path, {
        headers: key ? { Authorization: `Bearer ${key}` } : {},
        cache: "no-store",
        signal: aborting.signal,
      });
      if (!response.ok) return await this.refused(response, key);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      this.on.up();
      this.wait = FIRST_WAIT_MS;
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        clearTimeout(silence);
        if (done) break;
        silence = setTimeout(() => aborting.abort(), SILENT_MS);
        const events = (text + value).split("\n\n");
        text = events.pop();
        for (const event of events) this.take(event);
      }
      this.on.down("it ended the stream");
      return true;
    } finally {
      clearTimeout(silence);
    }
  }

  async refused(response, key) {
    const problem = (await response.json().catch(() => null))?.error;
    if (response.status === 401) {
      sessionStorage.removeItem(KEY);
      this.on.key(key ? "That key is not one of this server's." : "");
      return false;
    }
    this.on.down(problem?.message ?? `it answered with status ${response.status}`);
    return response.status === 429 || response.status >= 500;
  }

  take(event) {
    const fields = Object.fromEntries(
      event.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
    );
    if (fields.event) this.on.event(fields.event, JSON.parse(fields.data));
  }
}
