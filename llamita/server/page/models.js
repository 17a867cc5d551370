// The models that the server has, and how much of the chosen one's context is used.

import { listModels } from "./api.js";
import { byId, element } from "./elements.js";
import { acceptKey, apiKey, askForKey } from "./settings.js";
import { store, stored } from "./storage.js";

const picker = byId("model");
const LENGTHS = new Map(); // model -> context length in tokens, where the server says it
const CHOSEN = "llamita.model";
let used = null; // tokens of the context, where an answer has told

/** The chosen model's name. */
export const modelName = () => picker.value;

/** Ask the server for its models, and say so where it does not answer. */
export async function loadModels() {
  try {
    const models = await listModels(apiKey());
    const before = picker.value || stored(localStorage, CHOSEN);
    picker.replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
    if (models.some(({ id }) => id === before)) picker.value = before;
    for (const { id, max_model_len: length } of models) LENGTHS.set(id, length);
    picker.disabled = models.length < 2;
    drawUsage();
    showTrouble("");
    acceptKey();
  } catch (error) {
    if (error.status === 401) askForKey(error.message);
    showTrouble(error.message);
  }
}

/** Show how many tokens of the context are used; null where that is not known. */
export function showUsed(tokens) {
  used = tokens;
  drawUsage();
}

/** Watch the picker, and load the models. */
export function startModels() {
  picker.addEventListener("change", () => {
    store(localStorage, CHOSEN, picker.value);
    drawUsage();
  });
  byId("reload").addEventListener("click", loadModels);
  return loadModels();
}

function drawUsage() {
  const length = LENGTHS.get(picker.value);
  byId("context").max = length ?? 1;
  byId("context").value = length ? (used ?? 0) : 0;
  byId("context-text").textContent = length ? `${used ?? 0} of ${length} tokens` : used === null ? "" : `${used} tokens`;
}

function showTrouble(text) {
  byId("trouble").hidden = !text;
  byId("trouble-text").textContent = text;
}
