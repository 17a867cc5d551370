// The models that the server has, and how much of the chosen one's context is used.

import { listModels } from "./api.js";
import { byId, element } from "./elements.js";
import { acceptKey, apiKey, askForKey } from "./settings.js";

const picker = byId("model");
const LENGTHS = new Map(); // model -> context length in tokens, where the server says it

/** The chosen model's name. */
export const modelName = () => picker.value;

/** Ask the server for its models, and say so where it does not answer. */
export async function loadModels() {
  try {
    const models = await listModels(apiKey());
    const before = picker.value;
    picker.replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
    if (models.some(({ id }) => id === before)) picker.value = before;
    for (const { id, max_model_len: length } of models) LENGTHS.set(id, length);
    picker.disabled = models.length < 2;
    showUsage(null);
    showTrouble("");
    acceptKey();
  } catch (error) {
    if (error.status === 401) askForKey(error.message);
    showTrouble(error.message);
  }
}

/** Show how many tokens of the context are used. */
export function showUsage(usage) {
  const length = LENGTHS.get(picker.value);
  const used = usage?.total_tokens ?? 0;
  byId("context").max = length ?? 1;
  byId("context").value = length ? used : 0;
  byId("context-text").textContent = length ? `${used} of ${length} tokens` : usage ? `${used} tokens` : "";
}

/** Watch the picker, and load the models. */
export function startModels() {
  picker.addEventListener("change", () => showUsage(null));
  byId("reload").addEventListener("click", loadModels);
  return loadModels();
}

function showTrouble(text) {
  byId("trouble").hidden = !text;
  byId("trouble-text").textContent = text;
}
