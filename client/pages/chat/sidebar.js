// The list of chats that this browser keeps. On a narrow screen it slides over the conversation.

import { at, make } from "../shared/dom.js";
import { iconButton } from "./buttons.js";
import { keptIds, listChats } from "./chats.js";

export class Sidebar {
  /** `actions`: `open(id)` and `remove(ids)`. */
  constructor(actions) {
    this.actions = actions;
    this.panel = at("chats");
    this.list = at("list");
    this.opener = at("open-chats");
    this.opener.addEventListener("click", () => this.slide(!this.isOpen));
    at("shade").addEventListener("click", () => this.slide(false));
    this.panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.isOpen) {
        event.stopPropagation();
        this.slide(false);
        this.opener.focus();
      }
    });
    at("delete-all").addEventListener("click", () => {
      if (confirm("Delete all chats that this browser keeps?")) this.actions.remove(keptIds());
    });
  }

  get isOpen() {
    return document.body.classList.contains("chats-open");
  }

  slide(open) {
    document.body.classList.toggle("chats-open", open);
    this.opener.setAttribute("aria-expanded", String(open));
    if (open) this.panel.querySelector("button").focus();
  }

  /** `current`: id of the chat on the page. */
  draw(current) {
    const chats = listChats();
    at("delete-all").hidden = !chats.length;
    this.list.replaceChildren(
      ...chats.map(({ id, title }) => {
        const open = make("button", {
          type: "button",
          class: "title",
          text: title || "A chat",
          "aria-current": id === current || undefined,
          onclick: () => this.actions.open(id),
        });
        const remove = iconButton("delete", `Delete the chat “${title}”`, () => this.actions.remove([id]));
        return make("li", {}, open, remove);
      }),
    );
  }
}
