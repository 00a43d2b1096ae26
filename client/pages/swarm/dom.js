// Lists, commands and quantities as this page shows them.

import { few, make, write } from "../shared/dom.js";

export * from "../shared/dom.js";

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

/** A command in a box, with a button that copies it where browsers allow that: over HTTPS and on this computer. */
export function commandBox() {
  const code = make("code");
  const button = make("button", { type: "button", text: "Copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
    setTimeout(() => write(button, "Copy"), 1500);
  });
  const box = make("div", { class: "command" }, code, navigator.clipboard ? button : "");
  box.show = (command) => write(code, command);
  return box;
}

export const percent = (part) => `${Math.round(100 * part)} %`;
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
