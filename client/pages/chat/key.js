/** Asks a person for the API key of a gateway that wants one. */

import { make } from "./dom.js";

const dialog = document.getElementById("key");
const field = document.getElementById("key-field");
let asking = null;

/** The key; null if the person gives none. Requests that run side by side ask once. `wrong`: the last was. */
export function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    field.value = "";
    document.getElementById("key-problem").replaceChildren(
      ...(wrong ? [make("p", { className: "note bad", textContent: "The gateway does not know this key." })] : []),
    );
    dialog.querySelector("form").onsubmit = () => dialog.close(field.value.trim());
    dialog.onclose = () => {
      asking = null;
      resolve(dialog.returnValue || null);
    };
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}
