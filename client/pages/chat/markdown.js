// Markdown as elements. markdown-it reads it; what it finds becomes elements of a few kinds, and never HTML.

import { make } from "../shared/dom.js";
import MarkdownIt from "../vendor/markdown-it/markdown-it.js";
import { codeBlock } from "./code.js";

const LINK = /^(https?:|mailto:)/i;
const HEADING = /^h[1-6]$/;

const reader = new MarkdownIt({ html: false, linkify: true, breaks: true });
reader.linkify.set({ fuzzyLink: false, fuzzyEmail: false }); // only what says that it is an address
reader.validateLink = (address) => LINK.test(address.trim());

/** What a token without an end becomes, by its type. */
const LEAVES = {
  text: (token) => token.content,
  softbreak: () => make("br"),
  hardbreak: () => make("br"),
  hr: () => make("hr"),
  code_inline: (token) => make("code", { text: token.content }),
  code_block: (token) => codeBlock(token.content, ""),
  fence: (token) => codeBlock(token.content, token.info.trim().split(/\s/)[0]),
  image: (token) => link(token.attrGet("src"), token.content || token.attrGet("src")), // nothing is fetched
};

function link(address, text = "") {
  return make("a", { href: address, text, target: "_blank", rel: "noopener noreferrer nofollow" });
}

/** The element that a token opens. */
function opened(token) {
  if (token.tag === "a") return link(token.attrGet("href"));
  if (HEADING.test(token.tag)) return make(`h${Math.min(6, Number(token.tag[1]) + 2)}`); // below the page's own
  const aligned = /^text-align:(\w+)$/.exec(token.attrGet("style") ?? "");
  return make(token.tag, { start: token.attrGet("start") ?? undefined, class: aligned ? `align-${aligned[1]}` : undefined });
}

/** A table that may be wider than the page. */
function wide(table) {
  return make("div", { class: "wide", role: "region", tabindex: 0, "aria-label": "Table" }, table);
}

function build(tokens, parent) {
  const open = [parent];
  for (const token of tokens) {
    const here = open.at(-1);
    if (token.type === "inline") build(token.children, here);
    else if (token.nesting < 0) open.pop();
    else if (token.nesting > 0) {
      const element = token.hidden ? here : opened(token); // the paragraphs of a tight list are hidden
      if (element !== here) here.append(token.tag === "table" ? wide(element) : element);
      open.push(element);
    } else here.append(LEAVES[token.type]?.(token) ?? token.content);
  }
}

/** The tokens of each block of the top level, with the lines that it was read from. */
function* blocks(text) {
  const lines = text.split("\n");
  let tokens = [];
  let depth = 0;
  for (const token of reader.parse(text, {})) {
    tokens.push(token);
    depth += token.nesting;
    if (depth) continue;
    const [begin, end] = tokens[0].map;
    yield { source: lines.slice(begin, end).join("\n"), tokens };
    tokens = [];
  }
}

/** Show a text that grows. Blocks that have not changed stay the elements that they are, and so keep what a
 * reader has selected, scrolled or focused. */
export class MarkdownView {
  element = make("div", { class: "text" });
  #sources = [];

  show(text) {
    let number = 0;
    for (const { source, tokens } of blocks(text)) {
      if (this.#sources[number] !== source) {
        this.#sources[number] = source;
        const holder = make("div", { class: "block" });
        build(tokens, holder);
        if (this.element.children[number]) this.element.children[number].replaceWith(holder);
        else this.element.append(holder);
      }
      number++;
    }
    this.#sources.length = number;
    while (this.element.children.length > number) this.element.lastChild.remove();
  }
}
