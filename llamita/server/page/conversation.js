// A conversation as JSON: for the next load of this tab, and as a file.

import { store, stored } from "./storage.js";

const STORED = "llamita.chat";
const KEPT = [
  "role", "text", "tokens", "request", "system", "prefix", "seed", "count", "speed", "used", "finish", "error", "versions",
  "version",
];
const LESS = { tokens: [], versions: [], version: 0 };
const ROLES = ["user", "assistant"];

/** Keep the turns for this tab; if they are too many, without their tokens' probabilities and their other versions. */
export function keep(turns) {
  const plain = turns.map((turn) => Object.fromEntries(KEPT.filter((name) => name in turn).map((name) => [name, turn[name]])));
  const isKept = store(sessionStorage, STORED, plain);
  if (!isKept) store(sessionStorage, STORED, plain.map((turn) => ("tokens" in turn ? { ...turn, ...LESS } : turn)));
}

/** The turns that were kept. An answer that was being written has been stopped. */
export function kept() {
  const turns = stored(sessionStorage, STORED);
  if (!Array.isArray(turns)) return [];
  const isCut = (turn) => turn.role === "assistant" && !turn.finish && !turn.error;
  return turns.map((turn) => (isCut(turn) ? { ...turn, finish: "stopped" } : turn));
}

/** The messages of turns, as the API has them. */
export function messagesOf(turns, system) {
  const messages = turns.map(({ role, text }) => ({ role, content: text }));
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

/** {system, turns} of the JSON of a file: the body of a chat request, or its messages alone. Throws an Error. */
export function conversationOf(json) {
  const messages = parsed(json);
  const isSystem = ({ role }) => role === "system" || role === "developer";
  const system = messages.filter(isSystem).map((message) => textIn(message.content)).join("\n\n");
  const others = messages.filter((message) => !isSystem(message));
  const turns = others.map(({ role, content }) => ({ role, text: textIn(content) }));
  if (!turns.length || !turns.every(({ role }) => ROLES.includes(role))) throw new Error(NO_CONVERSATION);
  return { system, turns };
}

const NO_CONVERSATION = "This file has no conversation: choose one that was saved here, or the JSON of a chat request.";

function parsed(json) {
  let value;
  try {
    value = JSON.parse(json);
  } catch {
    throw new Error(NO_CONVERSATION);
  }
  const messages = Array.isArray(value) ? value : value?.messages;
  if (!Array.isArray(messages) || !messages.every((one) => one && typeof one === "object")) throw new Error(NO_CONVERSATION);
  return messages;
}

/** The text of a message, which may come in parts. */
function textIn(content) {
  if (typeof content === "string") return content;
  const parts = Array.isArray(content) ? content.map((part) => part?.text) : [];
  if (!parts.length || !parts.every((text) => typeof text === "string")) throw new Error(NO_CONVERSATION);
  return parts.join("");
}
