// Blocks of code: coloured by their language, with a button that copies them.

import { make } from "../shared/dom.js";
import highlighter from "../vendor/highlight/highlight.js";
import { copyButton } from "./buttons.js";

/** Characters. A longer block is not coloured: that would hold up the page. */
const LONGEST = 50_000;
const MOST_COMMANDS = 3;

/** What highlight.js hands its findings to. It makes elements, where highlight.js itself would write HTML. */
class ElementEmitter {
  root = document.createDocumentFragment();
  #open = [this.root];

  addText(text) {
    this.#open.at(-1).append(text);
  }

  startScope(scope) {
    const element = make("span", { class: `code-${scope.split(".")[0]}` });
    this.#open.at(-1).append(element);
    this.#open.push(element);
  }

  endScope() {
    this.#open.pop();
  }

  openNode(scope) {
    this.startScope(scope);
  }

  closeNode() {
    this.endScope();
  }

  __addSublanguage(emitter) {
    this.#open.at(-1).append(emitter.root);
  }

  finalize() {}

  toHTML() {
    return "";
  }
}

highlighter.configure({ __emitter: ElementEmitter });

function coloured(text, language) {
  if (text.length > LONGEST || !highlighter.getLanguage(language)) return text;
  return highlighter.highlight(text, { language, ignoreIllegals: true })._emitter.root;
}

/** Commands for a terminal, as a problem names them. */
export function commandsOf(commands) {
  return commands.slice(0, MOST_COMMANDS).map((command) => codeBlock(command, "shell"));
}

/** A block of code. `language`: as the answer names it, perhaps not at all. */
export function codeBlock(text, language) {
  const shown = text.replace(/\n$/, "");
  const label = language ? `Code, ${language}` : "Code";
  const scrolled = { role: "region", tabindex: 0, "aria-label": label }; // a wide one, with the keyboard
  const block = make("pre", scrolled, make("code", {}, coloured(shown, language)));
  const head = make("div", { class: "code-head" }, make("span", { text: language || "text" }));
  head.append(copyButton("Copy this code", () => shown));
  return make("div", { class: "code" }, head, block);
}
