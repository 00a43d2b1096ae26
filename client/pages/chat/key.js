// Asks a person for the API key of a gateway that wants one.

import { at, make } from "../shared/dom.js";

const dialog = at("key");
const field = at("key-field");
let asking = null;

/** The key; null if the person gives none. Requests that run side by side ask once. `wrong`: the last was. */
export function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    field.value = "";
    at("key-problem").replaceChildren(
      ...(wrong ? [make("p", { class: "note bad", text: "The gateway does not know this key." })] : []),
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
