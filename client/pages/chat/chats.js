// The chats that this browser keeps, on this computer only: each under a key of its own in localStorage.

const PREFIX = "swarm-node.chat.";
const SETTINGS = "swarm-node.settings";
const MOST = 100;
/** Characters of one chat's JSON. Browsers keep some five million for a site. */
const LONGEST = 1_000_000;
const TITLE = 60;

/** A chat: `messages` are `{role, content}`, and answers have `reasoning`, `state` and `facts` beside it. */
export function newChat() {
  return { id: crypto.getRandomValues(new Uint32Array(3)).join("-"), title: "", updated: 0, system: "", messages: [] };
}

/** What is kept: titles and times, the newest first. */
export function listChats() {
  return keys()
    .map((key) => read(key))
    .filter(Boolean)
    .sort((one, other) => other.updated - one.updated);
}

/** Of all that is kept, also what cannot be read. */
export function keptIds() {
  return keys().map((key) => key.slice(PREFIX.length));
}

export function loadChat(id) {
  return read(PREFIX + id);
}

/** Whether it could be kept. The oldest chats go where there is no room. */
export function saveChat(chat) {
  chat.updated = Date.now();
  chat.title ||= (chat.messages[0]?.content ?? "").trim().split("\n")[0].slice(0, TITLE);
  const text = JSON.stringify(chat);
  if (text.length > LONGEST) return false;
  const others = listChats().filter((each) => each.id !== chat.id);
  while (others.length >= MOST) deleteChat(others.pop().id);
  for (;;) {
    try {
      localStorage.setItem(PREFIX + chat.id, text);
      return true;
    } catch {
      if (!others.length) return false;
      deleteChat(others.pop().id);
    }
  }
}

export function deleteChat(id) {
  localStorage.removeItem(PREFIX + id);
}

/** Calls back when another tab has changed a chat. */
export function onChatsChanged(callback) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) callback();
  });
}

export function loadSettings() {
  const settings = parsed(SETTINGS);
  return settings && typeof settings === "object" ? settings : {};
}

export function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // They hold for as long as the page is open.
  }
}

function keys() {
  return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
}

function parsed(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

/** A chat, if what is under the key is one: an older or newer page may have written it. */
function read(key) {
  const chat = parsed(key);
  const good = chat && PREFIX + chat.id === key && Array.isArray(chat.messages) && chat.messages.every(isMessage);
  return good ? chat : null;
}

function isMessage(message) {
  if (typeof message?.content !== "string") return false;
  return message.role === "user" || (message.role === "assistant" && Array.isArray(message.facts?.repairs));
}
