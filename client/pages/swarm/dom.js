// Elements and words. Every text goes in as text: nothing that a peer chose is ever read as HTML.

export const at = (id) => document.getElementById(id);

/** An element with attributes and children. `class` and `text` are what they say; undefined ones are left out. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, { text, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Let `parent` have one child for each of `entries` ([key, value]), in their order. Children are kept, so that
 * focus and selection stay: `create(key)` makes one, `update(child, value, key)` writes it. */
export function keyed(parent, entries, create, update) {
  const before = (parent.keyed ??= new Map());
  const after = new Map();
  let place = parent.firstChild;
  for (const [key, value] of entries) {
    const child = before.get(key) ?? create(key);
    before.delete(key);
    after.set(key, child);
    update(child, value, key);
    if (child === place) place = place.nextSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of before.values()) child.remove();
  parent.keyed = after;
}

/** A command in a box, with a button that copies it. */
export function commandBox() {
  const code = make("code");
  const button = make("button", { type: "button", text: "Copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
    setTimeout(() => write(button, "Copy"), 1500);
  });
  const box = make("div", { class: "command" }, code, button);
  box.show = (command) => write(code, command);
  return box;
}

const few = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const number = (value) => (value >= 10000 ? compact : value >= 100 ? whole : few).format(value);
export const percent = (part) => `${Math.round(100 * part)} %`;
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
export const shortId = (peer) => `…${peer.slice(-6)}`;
export const blocks = (first, last) => (first === last ? `${first}` : `${first}-${last}`);

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = count;
  while (size >= 1000 && units.length > 1) {
    size /= 1000;
    units.shift();
  }
  return `${few.format(size)} ${units[0]}`;
}

export function duration(seconds) {
  if (seconds < 0.9995) return `${few.format(seconds * 1000)} ms`;
  if (seconds < 120) return `${few.format(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} days`;
}

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");
