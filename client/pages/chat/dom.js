/** Elements, made in one line. Text is always text: nothing on this page is ever read as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties, such as `{ className: "facts", textContent: "…" }`, and what is in it. */
export function make(tag, properties = {}, ...inside) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...inside);
  return element;
}

/** One of the drawings at the head of index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A small button with a drawing. Its name is for screen readers, and for a pointer that rests on it. */
export function iconButton(name, label, onclick) {
  const button = make("button", { type: "button", className: "small", title: label, onclick }, icon(name));
  button.setAttribute("aria-label", label);
  return button;
}

/** A button that puts a text on the clipboard, and says so. Browsers offer that over HTTPS and on this computer
 * only: elsewhere there is none. */
export function copyButton(label, textOf) {
  if (!navigator.clipboard) return "";
  const button = iconButton("copy", label, async () => {
    await navigator.clipboard.writeText(textOf());
    button.replaceChildren(icon("check"));
    button.setAttribute("aria-label", "Copied");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", label);
    }, 2000);
  });
  return button;
}
