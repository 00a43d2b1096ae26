// One message of the conversation as it is seen.

import { make, number, plural, write } from "../shared/dom.js";
import { STATES } from "./answer.js";
import { copyButton, icon, iconButton } from "./buttons.js";
import { commandsOf } from "./code.js";
import { MarkdownView } from "./markdown.js";

/** A question: its text as it was typed. `actions`: what its buttons do. */
export class QuestionView {
  constructor(message, actions) {
    this.message = message;
    this.text = make("div", { class: "bubble", text: message.content });
    this.buttons = make(
      "div",
      { class: "buttons" },
      iconButton("edit", "Edit this message", () => this.#edit(actions.edit)),
      copyButton("Copy this message", () => message.content),
    );
    const head = make("h2", { class: "hidden", text: "You" });
    this.element = make("article", { class: "turn question", "aria-label": "You" }, head, this.text, this.buttons);
  }

  /** A field in place of the text. */
  #edit(send) {
    if (this.element.querySelector("form")) return;
    const field = make("textarea", { rows: 3, "aria-label": "Your message", text: this.message.content });
    const close = () => {
      form.replaceWith(this.text, this.buttons);
      this.buttons.querySelector("button").focus();
    };
    const form = make(
      "form",
      {
        class: "editor",
        onsubmit: (event) => {
          event.preventDefault();
          if (field.value.trim()) send(field.value.trim());
        },
        onkeydown: (event) => {
          if (event.key === "Escape") {
            event.stopPropagation(); // no answer is stopped by it
            close();
          } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            form.requestSubmit();
          }
        },
      },
      field,
      make("p", { class: "dim", text: "The answers below it are made anew." }),
      make("button", { type: "button", text: "Cancel", onclick: close }),
      make("button", { class: "main", text: "Send" }),
    );
    this.text.replaceWith(form);
    this.buttons.remove();
    field.focus();
  }

  edit() {
    this.buttons.querySelector("button").click();
  }

  draw() {}
}

/** An answer: what was thought, what is said, how it came about, and what can be done with it. */
export class AnswerView {
  #markdown = new MarkdownView();
  #thought = new MarkdownView();

  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.thinking = make("details", { class: "thinking", hidden: true }, make("summary"), this.#thought.element);
    this.status = make("p", { class: "status", hidden: true, "aria-hidden": true }); // what is worth it is said apart
    this.notes = make("div", { class: "notes" });
    this.facts = make("details", { class: "facts", hidden: true }, make("summary"), make("div"));
    this.buttons = make("div", { class: "buttons" });
    this.element = make(
      "article",
      { class: "turn answer", "aria-label": message.model || "Answer" },
      make("h2", { class: "who", text: message.model || "Answer" }),
      this.thinking,
      this.#markdown.element,
      this.status,
      this.notes,
      this.facts,
      this.buttons,
    );
  }

  /** `answer`: while it is made. `isLast`: it may be gone on with. */
  draw(answer, isLast) {
    const { message } = this;
    this.element.classList.toggle("working", Boolean(answer));
    this.element.setAttribute("aria-busy", Boolean(answer));
    this.#markdown.show(message.content);
    this.#drawThinking(answer);
    this.#drawStatus(answer);
    this.#drawFacts(isLast);
    const { state, facts, content } = message;
    const about = [state, facts?.forgotten, facts?.problem, answer?.commands];
    this.#redraw(this.notes, about, () => notesOf(message, answer));
    this.#redraw(this.buttons, [state, isLast, !answer, !content], () => (answer ? [] : this.#buttonsOf(isLast)));
  }

  /** Fill an element anew, if what it is `about` has changed: what is focused, or said aloud, stays otherwise. */
  #redraw(element, about, inside) {
    const key = JSON.stringify(about);
    if (element.about === key) return;
    element.about = key;
    element.replaceChildren(...inside());
  }

  #drawThinking(answer) {
    const { reasoning, content } = this.message;
    this.thinking.hidden = !reasoning;
    if (!reasoning) return;
    const now = answer && !content;
    this.thinking.classList.toggle("now", Boolean(now));
    write(this.thinking.firstChild, now ? "Thinking" : "What it thought");
    if (this.thinking.open || !answer) this.#thought.show(reasoning);
    this.thinking.ontoggle = () => this.#thought.show(this.message.reasoning);
  }

  #drawStatus(answer) {
    const { content, reasoning } = this.message;
    this.status.hidden = !answer || (answer.stage === "answering" && Boolean(content || reasoning));
    if (this.status.hidden) return;
    this.status.className = `status ${answer.stage}`;
    write(this.status, answer.status);
  }

  #drawFacts(isLast) {
    const { facts } = this.message;
    this.facts.hidden = !facts?.tokens && !facts?.route;
    if (this.facts.hidden) return;
    const [summary, inside] = this.facts.children;
    write(summary, summaryOf(facts));
    if (inside.about === undefined) this.facts.open = isLast;
    this.#redraw(inside, [facts.route, facts.repairs], () => [
      ...(facts.route ? [routeOf(facts.route)] : []),
      ...facts.repairs.map(repairOf),
    ]);
  }

  #buttonsOf(isLast) {
    const { message, actions } = this;
    const buttons = [copyButton("Copy this answer", () => message.content)];
    if (isLast) buttons.push(iconButton("again", "Answer again", actions.again));
    if (isLast && message.content && message.state !== STATES.complete) {
      const go = make("button", { type: "button", onclick: actions.goOn }, icon("on"), "Continue");
      buttons.push(go);
    }
    return buttons;
  }
}

function summaryOf({ tokens, rate, firstMs, route, repairs }) {
  return [
    plural(tokens ?? 0, "token"),
    rate && `${rate.toFixed(1)} tokens/s`,
    firstMs && `first after ${(firstMs / 1000).toFixed(1)} s`,
    route && plural(route.length, "node"),
    repairs.length && plural(repairs.length, "repair"),
  ]
    .filter(Boolean)
    .join(" · ");
}

/** The hops as a bar, each as long as it has blocks. */
function routeOf(route) {
  const bar = make("ol", { class: "route", "aria-label": "Route" });
  route.forEach(({ peer, blocks, n_blocks: count }, place) => {
    const hop = make("li", { class: `hop hop-${place % 6}`, title: `${peer} holds blocks ${blocks}` });
    hop.style.flexGrow = count;
    hop.append(make("b", { text: peer }), make("span", { text: blocks }));
    bar.append(hop);
  });
  return bar;
}

function repairOf(text) {
  return make("p", { class: "repair" }, icon("repair"), text);
}

function notesOf({ state, facts, content }, answer) {
  const notes = [];
  if (facts?.forgotten) {
    notes.push(note("info", `The context is full: this question went without the ${plural(facts.forgotten, "oldest message")}.`));
  }
  if (answer) notes.push(...commandsOf(answer.commands));
  else if (state === STATES.cut) {
    const why = facts.full ? "the model's context is full" : `${number(facts.tokens)} tokens is the longest allowed`;
    notes.push(note("warn", `The answer was cut: ${why}.`));
  } else if (state === STATES.stopped) notes.push(note("info", content ? "Stopped." : "Stopped before the first word."));
  else if (state === STATES.failed) {
    const { message, commands } = facts.problem;
    const kept = content ? " What was said so far is kept." : "";
    const shown = note("bad", sentence(message) + kept);
    shown.setAttribute("role", "alert");
    notes.push(shown, ...commandsOf(commands));
  }
  return notes;
}

function note(kind, text) {
  return make("p", { class: `note ${kind}`, text });
}

/** With a capital letter and a full stop. */
function sentence(text) {
  const begun = text[0].toUpperCase() + text.slice(1);
  return /[.!?:]$/.test(begun) ? begun : `${begun}.`;
}
