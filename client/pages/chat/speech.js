// What a screen reader says. Of an answer it hears whole sentences as they are complete: one that is told every
// token says none of them.

import { make } from "../shared/dom.js";

/** A sentence's end, or a line's. Marks of Markdown are not read out, and neither is code. */
const END = /[.!?。！？…](?=\s)|\n/g;
const MARKS = /[*_`#>|~]+|^\s*[-+]\s/gm;
const FENCE = /^\s*(```|~~~)/;
const KEPT = 20;

export class Speech {
  #region;
  #said = 0;
  #inCode = false;

  /** `region`: an element with aria-live. */
  constructor(region) {
    this.#region = region;
  }

  say(text) {
    const words = text.replace(MARKS, " ").trim();
    if (!words) return;
    this.#region.append(make("p", { text: words }));
    while (this.#region.children.length > KEPT) this.#region.firstChild.remove();
  }

  /** A text begins, of which this many characters are known. */
  begin(known = 0) {
    this.#said = known;
    this.#inCode = false;
  }

  /** The text so far: what is new and complete in it is said. */
  follow(text) {
    let end = 0;
    for (const found of text.slice(this.#said).matchAll(END)) end = found.index + found[0].length;
    if (end) this.#sayUntil(text, this.#said + end);
  }

  /** The text is over: the rest is said. */
  end(text) {
    this.#sayUntil(text, text.length);
  }

  #sayUntil(text, end) {
    const said = [];
    for (const line of text.slice(this.#said, end).split("\n")) {
      if (FENCE.test(line)) {
        this.#inCode = !this.#inCode;
        if (this.#inCode) said.push("Code.");
      } else if (!this.#inCode) said.push(line);
    }
    this.say(said.join("\n"));
    this.#said = end;
  }
}
