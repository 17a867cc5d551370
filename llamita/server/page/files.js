// Saves files, and opens one.

import { byId, element } from "./elements.js";

/** Save a value as a file of JSON. */
export function saveJson(name, value) {
  const address = URL.createObjectURL(new Blob([`${JSON.stringify(value, null, 2)}\n`], { type: "application/json" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // a browser may read it late
}

/** Let a button open a file, and give its text to a function. */
export function opensFile(buttonId, take) {
  const input = element("input", { type: "file", accept: ".json,application/json", hidden: true });
  byId(buttonId).after(input);
  byId(buttonId).addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    const [file] = input.files;
    if (file) take(await file.text());
    input.value = ""; // the same file can be opened again
  });
}
