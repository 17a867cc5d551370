// Copies text, and says on the button whether that went well.

import { button, byId, element } from "./elements.js";

const SHOWN = 2000; // milliseconds that a button says what came of it

/** A button that copies what a function gives. */
export function copyButton(textOf, title) {
  const made = button("Copy", copy, { className: "quiet", title });
  async function copy() {
    const outcome = (await isCopied(textOf())) ? "Copied" : "The browser refused";
    made.textContent = byId("status").textContent = outcome;
    setTimeout(() => (made.textContent = "Copy"), SHOWN);
  }
  return made;
}

async function isCopied(text) {
  // A page that came over plain HTTP from another machine has no navigator.clipboard.
  if (!navigator.clipboard) return isCopiedBySelection(text);
  return navigator.clipboard.writeText(text).then(() => true, () => false);
}

function isCopiedBySelection(text) {
  const focused = document.activeElement;
  const area = element("textarea", { value: text, className: "unseen", readOnly: true });
  document.body.append(area);
  area.focus({ preventScroll: true });
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  focused?.focus({ preventScroll: true });
  return isDone;
}
