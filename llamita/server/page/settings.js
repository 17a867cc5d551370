// Settings: read from the panel, kept between visits; the API key is kept for this tab alone.

import { byId } from "./elements.js";
import { store, stored } from "./storage.js";

const STORED = "llamita.settings";
const THEME = "llamita.theme";
const KEY = "llamita.key";
const THEMES = { auto: "light dark", light: "light", dark: "dark" };
const form = byId("options");
const KEY_HINT = byId("key-hint").textContent;

/** Fill the panel with what was stored, and store every change; `onKey` is called after a change of the key. */
export function startSettings(onKey) {
  for (const [name, value] of Object.entries(stored(localStorage, STORED) ?? {})) {
    if (form.elements[name] && name !== "key") form.elements[name].value = value;
  }
  form.elements.key.value = stored(sessionStorage, KEY) ?? "";
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", save);
  form.elements.key.addEventListener("change", onKey);
  byId("reset").addEventListener("click", () => {
    for (const field of form.elements) if (field.name && field.name !== "key") field.value = "";
    save();
  });
  startTheme();
  startPanel();
}

/** The sampling settings that are filled in, in the words of the API; null where one is wrong, which the panel shows. */
export function sampling() {
  if (!form.checkValidity()) {
    togglePanel(true);
    form.reportValidity();
    return null;
  }
  const numbers = [...form.elements].filter((field) => field.type === "number" && field.value !== "");
  return Object.fromEntries(numbers.map((field) => [field.name, field.valueAsNumber]));
}

/** The system prompt, or "". */
export const systemPrompt = () => form.elements.system.value.trim();

/** Put a system prompt in the panel. */
export function setSystemPrompt(text) {
  form.elements.system.value = text;
  save();
}

/** The API key, or "". */
export const apiKey = () => form.elements.key.value.trim();

/** Open the panel at the field of the API key, and say why it is needed. */
export function askForKey(why) {
  togglePanel(true);
  byId("key-hint").textContent = why;
  byId("key-hint").classList.add("wrong");
  form.elements.key.focus();
}

/** Close the panel if it was opened to ask for a key. */
export function acceptKey() {
  const hint = byId("key-hint");
  if (!hint.classList.contains("wrong")) return;
  hint.classList.remove("wrong");
  hint.textContent = KEY_HINT;
  togglePanel(false);
}

/** Open or close the panel. */
export function togglePanel(isOpen) {
  byId("settings").hidden = !isOpen;
  byId("open-settings").setAttribute("aria-expanded", String(isOpen));
  document.body.classList.toggle("has-panel", isOpen);
}

/** Close the panel; a focus that was in it goes to the button that opens it. */
export function closePanel() {
  const hadFocus = byId("settings").contains(document.activeElement);
  togglePanel(false);
  if (hadFocus) byId("open-settings").focus();
}

/** Whether the panel is open. */
export const isPanelOpen = () => !byId("settings").hidden;

function save() {
  const fields = [...form.elements].filter((field) => field.name && field.name !== "key");
  store(localStorage, STORED, Object.fromEntries(fields.map((field) => [field.name, field.value])));
  store(sessionStorage, KEY, form.elements.key.value);
}

function startPanel() {
  byId("open-settings").addEventListener("click", () => togglePanel(!isPanelOpen()));
  byId("close-settings").addEventListener("click", closePanel);
}

function startTheme() {
  const names = Object.keys(THEMES);
  let theme = stored(localStorage, THEME) ?? "auto";
  const apply = () => {
    document.documentElement.style.colorScheme = THEMES[theme] ?? THEMES.auto;
    document.documentElement.dataset.theme = theme;
    byId("theme").title = `Theme: ${theme}`;
  };
  byId("theme").addEventListener("click", () => {
    theme = names[(names.indexOf(theme) + 1) % names.length];
    store(localStorage, THEME, theme);
    apply();
  });
  apply();
}
