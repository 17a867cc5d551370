// Starts the page: what each control calls.

import { alternatives, isWriting, send, showAgain, startOver, stop } from "./chat.js";
import { byId, fitHeight, onEnter } from "./elements.js";
import { loadModels, startModels } from "./models.js";
import { closePanel, isPanelOpen, sampling, startSettings } from "./settings.js";

const message = byId("message");

function submit() {
  const text = message.value.trim();
  if (!text || isWriting() || !sampling()) return;
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
  if (isWriting()) stop();
  else if (!alternatives.element.hidden) alternatives.close();
  else if (isPanelOpen()) closePanel();
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
byId("probabilities").addEventListener("click", toggleProbabilities);
byId("suggestions").addEventListener("click", ({ target }) => {
  if (target.matches("button") && !isWriting() && sampling()) send(target.textContent);
});
addEventListener("pointerdown", ({ target }) => {
  if (!target.closest(".alternatives, .token")) alternatives.close();
});
addEventListener("scroll", () => alternatives.follow(), { passive: true });
addEventListener("keydown", onEscape);
startModels();
