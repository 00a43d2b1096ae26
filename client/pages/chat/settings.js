// The sheet of settings. They hold for all chats; the system prompt belongs to one.

import { at } from "../shared/dom.js";
import { forgetKey } from "../shared/key.js";
import { loadSettings, saveSettings } from "./chats.js";

/** Fields of a request, and the numbers that a person gave for them. Without one, the model's own default holds. */
const NUMBERS = ["temperature", "top_p", "max_tokens"];

export class Settings {
  #kept = loadSettings();

  /** `systemChanged(text)`: the chat's system prompt is another. */
  constructor(systemChanged) {
    this.sheet = at("settings");
    this.system = at("system");
    const opener = at("open-settings");
    opener.addEventListener("click", () => this.sheet.showModal());
    this.sheet.addEventListener("click", (event) => {
      if (event.target === this.sheet) this.sheet.close(); // beside the sheet
    });
    this.sheet.addEventListener("close", () => opener.focus());
    this.system.addEventListener("change", () => systemChanged(this.system.value.trim()));
    at("forget-key").addEventListener("click", forgetKey);
    for (const name of NUMBERS) {
      const field = at(name);
      field.value = Number.isFinite(this.#kept[name]) ? this.#kept[name] : "";
      field.addEventListener("change", () => this.#keep(name, field));
    }
  }

  get model() {
    return this.#kept.model;
  }

  set model(id) {
    this.#kept.model = id;
    saveSettings(this.#kept);
  }

  show(chat) {
    this.system.value = chat.system;
  }

  /** What holds where a person gave nothing: the model's own, as the gateway tells it. */
  showDefaults(sampling) {
    for (const name of NUMBERS) at(name).placeholder = sampling[name] ?? "";
  }

  /** Fields for a request to a model with these defaults. */
  options(sampling) {
    const chosen = NUMBERS.filter((name) => name in this.#kept).map((name) => [name, this.#kept[name]]);
    return { ...sampling, ...Object.fromEntries(chosen) };
  }

  #keep(name, field) {
    if (!field.reportValidity()) return;
    if (field.value === "") delete this.#kept[name];
    else this.#kept[name] = Number(field.value);
    saveSettings(this.#kept);
  }
}
