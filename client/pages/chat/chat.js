// The chat page: what is on it, and what happens when somebody uses it.

import { at, make } from "../shared/dom.js";
import { Answer, STATES } from "./answer.js";
import { onKeyNeeded } from "./api.js";
import { commandsOf } from "./code.js";
import { deleteChat, loadChat, newChat, onChatsChanged, saveChat } from "./chats.js";
import { Conversation } from "./conversation.js";
import { askForKey } from "./key.js";
import { pause, readModels } from "./models.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Speech } from "./speech.js";

/** Milliseconds between two copies of an answer that grows. */
const SAVE_MS = 1000;
/** Milliseconds between two looks at the models while none can be served. */
const LOOK_MS = 2000;

const field = at("message");
const speech = new Speech(at("speech"));
let models = [];
let chat = newChat();
let running = null; // the Answer that is being made
let heard = { stage: "", repairs: 0 }; // what was said of it
let savedAt = 0;
let looking = false; // at the models, again and again
const deleted = new Set(); // ids of chats that an answer must not bring back

const conversation = new Conversation(at("conversation"), at("scroll"), {
  edit: (index, text) => ask(text, index),
  again: () => ask(chat.messages.findLast(({ role }) => role === "user").content, chat.messages.length - 2),
  goOn: () => answer(chat.messages.at(-1)),
});
const sidebar = new Sidebar({
  open: (id) => show(loadChat(id) ?? newChat()),
  remove: (ids) => {
    for (const id of ids) {
      deleted.add(id);
      deleteChat(id);
    }
    if (deleted.has(running?.chat.id)) running.stop();
    if (deleted.has(chat.id)) show(newChat());
    else sidebar.draw(chat.id);
  },
});
const settings = new Settings((system) => {
  chat.system = system;
  if (chat.messages.length) keep();
});

// Chats.

function show(next) {
  chat = running?.chat.id === next.id ? running.chat : next;
  history.replaceState(null, "", chat.messages.length ? `#${chat.id}` : "#");
  conversation.show(chat);
  settings.show(chat);
  sidebar.slide(false);
  redraw();
  field.focus();
}

function redraw() {
  const own = running?.chat === chat;
  conversation.update(own ? running : null);
  at("hello").hidden = chat.messages.length > 0;
  at("elsewhere").hidden = !running || own;
  at("notice").hidden = !at("notice").textContent || own; // the answer says it itself
  at("stop").hidden = !running;
  at("send").hidden = Boolean(running);
  allowSending();
  sidebar.draw(chat.id);
}

function allowSending() {
  at("send").disabled = !field.value.trim() || !at("model").value;
}

function keep(of = chat) {
  if (deleted.has(of.id)) return;
  savedAt = performance.now();
  at("unkept").hidden = saveChat(of);
}

// Asking.

/** Whether an answer may begin now: none runs, in another chat either, and a model is known. */
function canBegin() {
  if (running) return false;
  if (!at("model").value) loadModels(); // a key may have been refused
  return Boolean(at("model").value);
}

/** A new question at the end, or in place of the message `index` and all after it. */
function ask(text, index = chat.messages.length) {
  if (!canBegin()) return;
  chat.messages.splice(index, Infinity, { role: "user", content: text });
  answer({ role: "assistant", content: "" });
}

/** Make an answer, or go on with one. */
async function answer(message) {
  if (!canBegin()) return;
  const model = models.find(({ id }) => id === at("model").value);
  if (chat.messages.at(-1) !== message) chat.messages.push(message);
  const mine = new Answer(chat, message, {
    model: model.id,
    context: model.context,
    options: settings.options(model.sampling),
    changed: () => grew(mine),
  });
  running = mine;
  heard = { stage: "", repairs: mine.message.facts.repairs.length };
  history.replaceState(null, "", `#${chat.id}`);
  speech.begin(message.content.length);
  keep();
  redraw();
  conversation.toEnd();
  await mine.run();
  running = null;
  keep(mine.chat);
  redraw();
  speech.end(message.content);
  speech.say(ENDS[message.state]);
}

const ENDS = {
  [STATES.complete]: "The answer is complete.",
  [STATES.cut]: "The answer was cut. It can be continued.",
  [STATES.stopped]: "Stopped.",
  [STATES.failed]: "", // the page shows it as an alert
};

function grew(mine) {
  if (mine !== running) return;
  const { repairs } = mine.message.facts;
  if (mine.stage === "waiting" && heard.stage !== "waiting") speech.say(mine.status); // once, not every second
  if (repairs.length > heard.repairs) speech.say(repairs.at(-1));
  heard = { stage: mine.stage, repairs: repairs.length };
  speech.follow(mine.message.content);
  if (mine.chat === chat) conversation.grow();
  if (performance.now() - savedAt > SAVE_MS) keep(mine.chat);
}

// Models.

async function loadModels() {
  const select = at("model");
  try {
    models = await readModels();
  } catch (problem) {
    notice(problem.message, problem.commands);
    if (!problem.status) lookAgain(); // nobody is asked for a key twice without a wish
    return;
  }
  const before = select.value || settings.model;
  const options = models.map(({ id, available }) =>
    make("option", { value: id, text: available ? id : `${id} (not served now)` }),
  );
  select.replaceChildren(...options);
  const chosen = models.find(({ id }) => id === before) ?? models.find(({ available }) => available) ?? models[0];
  select.disabled = !chosen;
  if (chosen) choose(chosen);
  else notice("This gateway offers no model.");
}

function choose(model) {
  at("model").value = model.id;
  settings.showDefaults(model.sampling);
  notice(model.waitsFor, model.commands);
  if (!model.available) lookAgain();
}

async function lookAgain() {
  if (looking) return;
  looking = true;
  await pause(LOOK_MS);
  looking = false;
  loadModels();
}

/** What stands in the way, above the message field. Nothing: "". */
function notice(text, commands = []) {
  const box = at("notice");
  if (box.dataset.text === text) return;
  box.dataset.text = text;
  box.replaceChildren(...(text ? [make("p", { text })] : []), ...commandsOf(commands));
  redraw();
}

// The page.

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = field.value.trim();
  if (!text || !canBegin()) return;
  field.value = "";
  fit();
  ask(text);
});
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("composer").requestSubmit();
  } else if (event.key === "ArrowUp" && !field.value && !running) {
    event.preventDefault();
    conversation.editLast();
  }
});
field.addEventListener("input", () => {
  fit();
  allowSending();
});

/** The field is as high as its text, within what CSS allows. */
function fit() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.stop();
});
at("stop").addEventListener("click", () => running?.stop());
at("new").addEventListener("click", () => {
  show(newChat());
  speech.say("A new chat.");
});
at("model").addEventListener("change", () => {
  settings.model = at("model").value;
  choose(models.find(({ id }) => id === at("model").value));
});
addEventListener("pagehide", () => running && keep(running.chat));
onChatsChanged(() => sidebar.draw(chat.id));
onKeyNeeded(askForKey);
show(loadChat(location.hash.slice(1)) ?? newChat());
loadModels();
