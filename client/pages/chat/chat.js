const at = (id) => document.getElementById(id);
const turns = []; // what is sent with each question
let running = null; // the AbortController of the answer that is being made

// ---- text to elements; nothing a model writes is ever read as HTML -------------------------------------------

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
}

const INLINE = /(`+)([^`]+)\1|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^\]\n]{1,300})\]\((https?:\/\/[^\s()<>]{1,2000})\)/g;

function inline(parent, text) {
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    parent.append(text.slice(from, found.index));
    from = found.index + found[0].length;
    if (found[2] !== undefined) parent.append(make("code", found[2]));
    else if (found[3] !== undefined) parent.append(make("strong", found[3]));
    else if (found[4] !== undefined) parent.append(make("em", found[4]));
    else {
      const link = make("a", found[5]);
      link.href = found[6];
      link.rel = "noopener noreferrer nofollow";
      link.target = "_blank";
      parent.append(link);
    }
  }
  parent.append(text.slice(from));
}

const ITEM = /^\s{0,6}(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;

function markdown(text) {
  const all = document.createDocumentFragment();
  const lines = text.split("\n");
  let paragraph = [];
  let list = null;
  const flush = () => {
    if (!paragraph.length) return;
    const element = make("p");
    paragraph.forEach((line, number) => {
      if (number) element.append(make("br"));
      inline(element, line);
    });
    all.append(element);
    paragraph = [];
  };
  for (let number = 0; number < lines.length; number++) {
    const line = lines[number];
    const fence = line.match(/^\s{0,3}(```+|~~~+)/);
    if (fence) {
      flush();
      list = null;
      const inside = [];
      while (++number < lines.length && !lines[number].trimStart().startsWith(fence[1])) inside.push(lines[number]);
      const block = make("pre");
      block.tabIndex = 0; // a wide one can be scrolled with the keyboard
      block.append(make("code", inside.join("\n")));
      all.append(block);
      continue;
    }
    const heading = line.match(/^(#{1,6})\s+(.*)$/);
    const item = line.match(ITEM);
    if (heading) {
      flush();
      list = null;
      const element = make("h" + Math.min(4, heading[1].length + 1));
      inline(element, heading[2]);
      all.append(element);
    } else if (item) {
      flush();
      const tag = item[1] ? "ul" : "ol";
      if (!list || list.localName !== tag) {
        list = make(tag);
        if (tag === "ol") list.start = Number(item[2]);
        all.append(list);
      }
      const element = make("li");
      inline(element, item[3]);
      list.append(element);
    } else if (/^\s{0,3}([-*_])(\s*\1){2,}\s*$/.test(line)) {
      flush();
      list = null;
      all.append(make("hr"));
    } else if (line.startsWith(">")) {
      flush();
      list = null;
      const element = make("blockquote");
      inline(element, line.replace(/^>\s?/, ""));
      all.append(element);
    } else if (!line.trim()) {
      flush();
    } else if (list && /^\s+/.test(line)) {
      list.lastChild.append(make("br"));
      inline(list.lastChild, line.trim());
    } else {
      list = null;
      paragraph.push(line);
    }
  }
  flush();
  return all;
}

// ---- the conversation ----------------------------------------------------------------------------------------

function addTurn(role, who) {
  at("hello")?.remove();
  const turn = make("article", "", "turn " + role);
  turn.setAttribute("aria-label", who);
  const head = make("p", who, "who");
  const text = make("div", "", "text");
  turn.append(head, text);
  at("chat").append(turn);
  return { turn, head, text };
}

function showError(title, message, commands) {
  const { turn, text } = addTurn("error", title);
  turn.setAttribute("role", "alert");
  text.append(make("p", message));
  for (const command of commands || []) {
    const block = make("pre");
    block.append(make("code", command));
    text.append(block);
  }
  toEnd(true);
}

const scroller = document.querySelector("main");
function toEnd(always) {
  if (always || scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 120) {
    scroller.scrollTop = scroller.scrollHeight;
  }
}

function addCopy(head, text) {
  if (!navigator.clipboard) return; // browsers offer it over HTTPS and on this computer only
  const button = make("button", "Copy");
  button.type = "button";
  button.setAttribute("aria-label", "Copy this answer");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    at("status").textContent = "Copied.";
  });
  head.append(button);
}

function routeOf(header) {
  if (!header) return "";
  return header.split(", ").map((hop) => {
    const [peer, blocks] = hop.split("=");
    return `…${peer.slice(-6)} [${blocks}]`;
  }).join(" → ");
}

// ---- asking --------------------------------------------------------------------------------------------------

function headers() {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function problemOf(response) {
  try {
    return (await response.json()).error;
  } catch {
    return { message: `the gateway answered with status ${response.status}` };
  }
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function ask(message) {
  const began = performance.now();
  const abort = new AbortController();
  running = abort;
  setBusy(true);
  const mine = addTurn("user", "You");
  mine.text.textContent = message;
  turns.push({ role: "user", content: message });
  const { turn, head, text } = addTurn("assistant", at("model").value);
  text.classList.add("working");
  toEnd(true);
  const system = at("system").value.trim();
  let answer = "", tokens = 0, firstAt = 0, route = "", failure = null, drawn = false;
  const draw = () => {
    drawn = false;
    text.replaceChildren(markdown(answer));
    toEnd(false);
  };
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers(),
      signal: abort.signal,
      body: JSON.stringify({
        model: at("model").value,
        messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
        temperature: Number(at("temperature").value),
        ...(at("tokens").value ? { max_tokens: Number(at("tokens").value) } : {}),
        stream: true,
        stream_options: { include_usage: true, continuous_usage_stats: true },
      }),
    });
    if (!response.ok) {
      failure = await problemOf(response);
    } else {
      route = routeOf(response.headers.get("x-swarm-route"));
      for await (const event of eventsOf(response)) {
        if (event.error) {
          failure = event.error;
          break;
        }
        if (!firstAt) at("status").textContent = "Answering …";
        firstAt ||= performance.now();
        tokens = event.usage ? event.usage.completion_tokens : tokens;
        answer += event.choices[0]?.delta?.content || "";
        if (!drawn) {
          drawn = true;
          requestAnimationFrame(draw);
        }
        at("count").textContent = `${tokens} tokens`; // to be seen only: nobody wants to hear each of them
      }
    }
  } catch (error) {
    if (!abort.signal.aborted) failure = { message: "the gateway cannot be reached: is it still running?" };
  }
  draw();
  text.classList.remove("working");
  if (answer) {
    turns.push({ role: "assistant", content: answer });
    const seconds = (performance.now() - firstAt) / 1000;
    const speed = tokens > 1 && seconds > 0 ? `${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    const first = `first token after ${((firstAt - began) / 1000).toFixed(2)} s`;
    const stopped = abort.signal.aborted ? "stopped" : "";
    turn.append(make("p", [stopped, `${tokens} tokens`, speed, first, route && `route ${route}`].filter(Boolean).join(" · "), "facts"));
    addCopy(head, answer);
  } else {
    turn.remove();
    mine.turn.remove();
    turns.pop(); // the message can be sent again
    if (!at("message").value) at("message").value = message;
  }
  if (failure) showError("Error", failure.message, failure.serve_commands);
  running = null;
  setBusy(false);
  at("count").textContent = "";
  at("status").textContent = failure ? "Failed." : abort.signal.aborted ? "Stopped." : "The answer is complete.";
  toEnd(false);
  at("message").focus();
}

function setBusy(busy) {
  at("chat").setAttribute("aria-busy", busy); // read out when it is complete, not token by token
  at("send").disabled = busy || !at("model").value;
  at("stop").disabled = !busy;
  at("new").disabled = busy;
  if (busy) at("status").textContent = "Waiting for the first token …";
}

async function loadModels() {
  const select = at("model");
  const before = select.value;
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) {
      const problem = await problemOf(response);
      if (response.status === 401) {
        at("settings").open = true;
        at("status").textContent = "This gateway needs an API key: see Settings.";
        at("key").focus();
      } else showError("Error", problem.message);
      return;
    }
    const found = await response.json();
    select.replaceChildren(...found.data.map((model) => {
      const option = make("option", model.id);
      option.value = model.id;
      return option;
    }));
    if (found.data.some((model) => model.id === before)) select.value = before;
    select.disabled = !found.data.length;
    at("status").textContent = "";
    if (!found.data.length) {
      const offered = found.unavailable.find((model) => model.owned_by);
      const blocks = offered?.swarm.missing_blocks.join(", ");
      showError("No model can be served now", offered ? `Nobody serves blocks ${blocks} of ${offered.id}. This would help:`
        : "The swarm serves no model of this gateway.", offered?.swarm.serve_commands);
    }
  } catch {
    showError("Error", "the gateway cannot be reached: is it still running?");
  }
  at("send").disabled = !select.value;
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const message = at("message").value.trim();
  if (!message || running || !at("model").value) return;
  if (!at("temperature").reportValidity() || !at("tokens").reportValidity()) return;
  at("message").value = "";
  ask(message);
});
at("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => {
  turns.length = 0;
  at("chat").replaceChildren();
  at("status").textContent = "A new chat.";
  at("message").focus();
  loadModels();
});
at("key").addEventListener("change", loadModels);
at("model").addEventListener("focus", () => { if (!running && !at("model").value) loadModels(); });
loadModels().then(() => at("message").focus());
