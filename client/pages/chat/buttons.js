// Drawings, and buttons that show one.

import { draw, make } from "../shared/dom.js";

/** Milliseconds for which a button says that it has copied. */
const COPIED_MS = 2000;

/** One of the drawings at the head of index.html. */
export function icon(name) {
  return draw("svg", { class: "icon", "aria-hidden": true }, draw("use", { href: `#icon-${name}` }));
}

/** A small button with a drawing. Its name is for screen readers, and for a pointer that rests on it. */
export function iconButton(name, label, onclick) {
  return make("button", { type: "button", class: "small", title: label, "aria-label": label, onclick }, icon(name));
}

/** A button that puts a text on the clipboard, and says so. Browsers offer that over HTTPS and on this computer
 * only: elsewhere there is none. */
export function copyButton(label, textOf) {
  if (!navigator.clipboard) return "";
  const button = iconButton("copy", label, async () => {
    await navigator.clipboard.writeText(textOf());
    show("check", "Copied");
    setTimeout(() => show("copy", label), COPIED_MS);
  });
  function show(drawing, name) {
    button.replaceChildren(icon(drawing));
    button.setAttribute("aria-label", name);
  }
  return button;
}
