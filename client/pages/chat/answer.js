// One answer while it is made: asks, follows the stream, and writes into the chat's message what came.

import { shortId } from "../shared/dom.js";
import { chunksOf, Problem, request } from "./api.js";
import { pause, untilAvailable } from "./models.js";

/** Milliseconds until a question that found no route is asked again, and for how long that goes on. */
const AGAIN_MS = 3000;
const PATIENCE_MS = 10 * 60_000;
/** The speed is measured over this many arrivals of tokens, which are as many milliseconds apart at least: tokens
 * may come in heaps. */
const WINDOW = 32;
const APART_MS = 50;

/** What a person can do about a problem that does not say it. */
const HINTS = {
  context_length_exceeded: ". Shorten the message, or begin a new chat.",
  model_not_found: ". Choose another model.",
  rate_limit_exceeded: ". Try again in a while.",
};

/** How an answer ended: `message.state`. A "cut" one reached the longest length, or the end of the context. */
export const STATES = { complete: "complete", cut: "cut", stopped: "stopped", failed: "failed" };

export class Answer {
  status = "Waiting for the first token";
  /** What the status is about: "busy" with the model, "waiting" for the swarm, or "answering". */
  stage = "busy";
  commands = [];
  #abort = new AbortController();
  #arrivals = [];

  /** `message`: the chat's last, an empty one, or one that is gone on with. `options`: fields of the request.
   * `changed` is called after every change. */
  constructor(chat, message, { model, context, options, changed }) {
    Object.assign(this, { chat, message, model, context, options, changed });
    this.begun = message.content.length;
    message.model = model;
    message.state = STATES.stopped; // what a page that is closed meanwhile leaves
    message.facts = { ...message.facts, problem: null, repairs: message.facts?.repairs ?? [] };
    this.tokensBefore = message.facts.tokens ?? 0;
  }

  stop() {
    this.#abort.abort();
  }

  /** Make the answer. Never rejects: what went wrong is in `message.facts.problem`. */
  async run() {
    const { message } = this;
    this.began = performance.now();
    try {
      message.state = await this.#asked();
    } catch (problem) {
      if (this.#abort.signal.aborted) message.state = STATES.stopped;
      else {
        message.state = STATES.failed;
        message.facts.problem = { message: problem.message + (HINTS[problem.code] ?? ""), commands: problem.commands ?? [] };
        if (!(problem instanceof Problem)) console.error(problem);
      }
    }
    this.changed();
  }

  /** The state it ends in. While no peer can begin with it, it is asked again and again. */
  async #asked() {
    const { signal } = this.#abort;
    for (;;) {
      await untilAvailable(this.model, signal, (model) => this.#wait(model.waitsFor, model.commands));
      try {
        return await this.#streamed();
      } catch (problem) {
        const late = performance.now() - this.began > PATIENCE_MS;
        if (problem.code !== "no_route" || this.#arrivals.length || late) throw problem;
        this.#wait(problem.message, problem.commands);
        await pause(AGAIN_MS, signal);
      }
    }
  }

  async #streamed() {
    this.#tell("busy", "Waiting for the first token");
    const response = await request("v1/chat/completions", {
      method: "POST",
      signal: this.#abort.signal,
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        ...this.options,
        model: this.model,
        messages: promptOf(this.chat),
        ...(this.begun ? { continue_final_message: true } : {}),
        truncation: "auto",
        stream: true,
        stream_options: { include_usage: true, continuous_usage_stats: true, swarm_events: true },
      }),
    });
    let reason = "";
    for await (const event of chunksOf(response)) {
      if (event.error) throw Problem.of(event.error, 200);
      if (event.swarm) this.#heard(event.swarm);
      const choice = event.choices[0];
      if (choice) this.#took(choice.delta, event.usage);
      reason = choice?.finish_reason ?? reason;
      this.changed();
    }
    this.message.facts.rate = this.speed ?? this.message.facts.rate; // as it was measured where it was made
    return reason === "length" ? STATES.cut : STATES.complete;
  }

  /** A piece of the answer. */
  #took(delta, usage) {
    const { message } = this;
    const { facts } = message;
    if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
    if (delta.content) message.content += delta.content;
    if (!usage?.completion_tokens) return;
    const now = performance.now();
    facts.firstMs ??= now - this.began;
    facts.tokens = this.tokensBefore + usage.completion_tokens;
    facts.full = usage.total_tokens >= this.context;
    if (now - (this.#arrivals.at(-1)?.[0] ?? -Infinity) >= APART_MS) {
      this.#arrivals = [...this.#arrivals, [now, facts.tokens]].slice(-WINDOW);
      const [[from, before]] = this.#arrivals;
      if (now > from) facts.rate = ((facts.tokens - before) * 1000) / (now - from);
    }
    const thinks = message.reasoning && !message.content;
    this.#tell("answering", thinks ? "Thinking" : "Answering");
  }

  /** What the gateway says of the swarm. */
  #heard({ waiting, queued, route, repaired, forgotten, timings }) {
    const { facts } = this.message;
    if (waiting) this.#wait(waiting.text);
    else if (waiting === null) this.#tell("busy", "Going on");
    if (queued) this.#tell("busy", "Waiting for a turn at the gateway");
    if (route) facts.route = route.map((hop) => ({ ...hop, peer: shortId(hop.peer_id, hop.name) }));
    if (repaired) facts.repairs.push(...repaired.map(({ text }) => text));
    if (forgotten) facts.forgotten = forgotten;
    if (timings?.decode_s > 0) this.speed = (timings.new_tokens - 1) / timings.decode_s;
  }

  #wait(text, commands = []) {
    this.#tell("waiting", text, commands);
  }

  #tell(stage, status, commands = []) {
    if (stage === this.stage && status === this.status) return;
    Object.assign(this, { stage, status, commands });
    this.changed();
  }
}

/** What is sent: the system prompt, and the turns. A question that was never answered gives way to the next. */
export function promptOf(chat) {
  const turns = [];
  for (const { role, content } of chat.messages) {
    if (role === "user" && turns.at(-1)?.role === "user") turns.pop();
    if (content) turns.push({ role, content });
  }
  return chat.system ? [{ role: "system", content: chat.system }, ...turns] : turns;
}
