/** The list of chats that this browser keeps. On a narrow screen it slides over the conversation. */

import { deleteAllChats, deleteChat, listChats } from "./chats.js";
import { iconButton, make } from "./dom.js";

export class Sidebar {
  /** `actions`: `open(id)`, and `gone` once the chat that is open may be deleted. */
  constructor(actions) {
    this.actions = actions;
    this.panel = document.getElementById("chats");
    this.list = document.getElementById("list");
    this.opener = document.getElementById("open-chats");
    this.opener.addEventListener("click", () => this.slide(!this.isOpen));
    document.getElementById("shade").addEventListener("click", () => this.slide(false));
    this.panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.isOpen) {
        event.stopPropagation();
        this.slide(false);
        this.opener.focus();
      }
    });
    document.getElementById("delete-all").addEventListener("click", () => {
      if (!confirm("Delete all chats that this browser keeps?")) return;
      deleteAllChats();
      this.actions.gone();
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
    document.getElementById("delete-all").hidden = !chats.length;
    this.list.replaceChildren(
      ...chats.map(({ id, title }) => {
        const open = make("button", { type: "button", className: "title", textContent: title || "A chat" });
        open.addEventListener("click", () => this.actions.open(id));
        if (id === current) open.setAttribute("aria-current", "true");
        const remove = iconButton("delete", `Delete the chat “${title}”`, () => {
          deleteChat(id);
          this.actions.gone();
        });
        return make("li", {}, open, remove);
      }),
    );
  }
}
