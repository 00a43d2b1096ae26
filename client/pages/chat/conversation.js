// The conversation on the page: a view for each message, drawn anew as an answer grows.

import { AnswerView, QuestionView } from "./turn.js";

/** Pixels from the end within which new text is followed. */
const NEAR = 120;

export class Conversation {
  #views = [];
  #answer = null;
  #drawing = false;

  /** `element` holds the views, `frame` scrolls them. `actions`: `edit(index, text)`, `again`, `goOn`. */
  constructor(element, frame, actions) {
    Object.assign(this, { element, frame, actions });
  }

  /** On a low screen the frame has no end of its own, and the page scrolls. */
  get #scroller() {
    return getComputedStyle(this.frame).overflowY === "visible" ? document.scrollingElement : this.frame;
  }

  show(chat) {
    this.chat = chat;
    this.#views = [];
    this.element.replaceChildren();
    this.update(null);
    if (chat.messages.length) this.toEnd();
  }

  /** The messages are others than before, or `answer` is being made (null: none is). */
  update(answer) {
    this.#answer = answer;
    const { messages } = this.chat;
    const same = this.#views.findIndex((view, index) => view.message !== messages[index]);
    for (const view of this.#views.splice(same < 0 ? messages.length : same)) view.element.remove();
    for (let index = this.#views.length; index < messages.length; index++) this.#add(messages[index], index);
    const follows = this.#isAtEnd();
    this.#draw();
    if (follows) this.toEnd();
  }

  /** The answer has grown: once for a picture on the screen, however many tokens come. */
  grow() {
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      const follows = this.#isAtEnd();
      this.#views.at(-1)?.draw(this.#answer, true);
      if (follows) this.toEnd();
    });
  }

  toEnd() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  editLast() {
    this.#views.findLast((view) => view instanceof QuestionView)?.edit();
  }

  #add(message, index) {
    const view =
      message.role === "user"
        ? new QuestionView(message, { edit: (text) => this.actions.edit(index, text) })
        : new AnswerView(message, this.actions);
    this.#views.push(view);
    this.element.append(view.element);
  }

  #draw() {
    const last = this.#views.at(-1);
    for (const view of this.#views) view.draw(view === last ? this.#answer : null, view === last);
  }

  #isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }
}
