// Starts the page: what each control calls.

import {
  alternatives, bringBack, keepTurns, openChat, restore, saveChat, send, showAgain, startOver,
} from "./chat.js";
import { byId, fitHeight, onEnter } from "./elements.js";
import { opensFile } from "./files.js";
import { isRunning, stop } from "./running.js";
import { loadModels, startModels } from "./models.js";
import { closePanel, isPanelOpen, sampling, startSettings } from "./settings.js";

const message = byId("message");

function submit() {
  const text = message.value.trim();
  if (!text || isRunning() || !sampling()) return;
  message.value = "";
  fitHeight(message);
  send(text);
}

function toggleProbabilities() {
  const toggle = byId("probabilities");
  toggle.ariaPressed = String(toggle.ariaPressed !== "true");
  alternatives.close();
  showAgain();
}

/** Escape does one thing: what has the focus comes first, as an editor. */
function onEscape(event) {
  if (event.key !== "Escape" || event.defaultPrevented || event.isComposing) return;
  if (isRunning()) stop();
  else if (!alternatives.element.hidden) alternatives.close();
  else if (isPanelOpen()) closePanel();
}

function openFile(text) {
  const hint = byId("file-hint");
  try {
    openChat(text);
    hint.textContent = "Opened.";
  } catch (error) {
    hint.textContent = error.message;
  }
}

document.body.append(alternatives.element);
startSettings(loadModels);
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
onEnter(message, submit);
message.addEventListener("input", () => fitHeight(message));
byId("stop").addEventListener("click", stop);
byId("new").addEventListener("click", () => {
  startOver();
  message.focus();
});
byId("back").addEventListener("click", bringBack);
byId("save-chat").addEventListener("click", saveChat);
opensFile("open-chat", openFile);
byId("probabilities").addEventListener("click", toggleProbabilities);
byId("suggestions").addEventListener("click", ({ target }) => {
  if (target.matches("button") && !isRunning() && sampling()) send(target.textContent);
});
addEventListener("pointerdown", ({ target }) => {
  if (!target.closest(".alternatives, .token")) alternatives.close();
});
addEventListener("scroll", () => alternatives.follow(), { passive: true });
addEventListener("keydown", onEscape);
addEventListener("pagehide", () => {
  stop(); // else the browser closes the connection after this, which looks as if the server had
  keepTurns();
});
document.addEventListener("visibilitychange", () => document.hidden && keepTurns());
restore();
startModels();
