// Shows how probable each token of an answer was, and what else could have stood in its place.

import { button, element } from "./elements.js";

const HARDEST = 4; // nats of surprise at which the colour is full
const ROWS = 10;
const CLOSING = 220; // milliseconds that the pointer has to reach the list

/** Tokens from the logprobs of a chunk: {bytes, text, logprob, top}; `bytes` is empty for a control token. */
export function tokensOf(logprobs) {
  const entries = logprobs?.content ?? [];
  return entries.map((entry) => ({ ...tokenOf(entry), top: (entry.top_logprobs ?? []).map(tokenOf) }));
}

/** A token for text whose probabilities are not known. */
export function unknownToken(text) {
  return { bytes: [...new TextEncoder().encode(text)], text, logprob: null, top: [] };
}

function tokenOf({ token, bytes, logprob }) {
  const isControl = /^<\|.*\|>$|^<\/?s>$/.test(token);
  return { bytes: isControl ? [] : (bytes ?? [...new TextEncoder().encode(token)]), text: token, logprob };
}

/** The text of tokens; null where it ends inside a character. */
export function textOf(tokens) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(
      Uint8Array.from(tokens.flatMap((token) => token.bytes)),
    );
  } catch {
    return null;
  }
}

/** An answer as tokens, coloured by probability. `choose(index, alternative)` is called for one that is clicked. */
export class TokenText {
  constructor(alternatives, choose) {
    this.element = element("div", { className: "tokens", role: "group", ariaLabel: "Tokens by probability" });
    this.alternatives = alternatives;
    this.choose = choose;
    this.tokens = [];
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    // Not pointerover: that comes too when the text changes under a pointer that rests.
    this.element.addEventListener("pointermove", (event) => this.#open(event.target));
    this.element.addEventListener("focusin", (event) => this.#open(event.target));
    this.element.addEventListener("pointerleave", () => alternatives.closeSoon());
    this.element.addEventListener("focusout", (event) => alternatives.closeWithout(event.relatedTarget));
    this.element.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Add the tokens that are not shown yet. */
  show(tokens) {
    for (const token of tokens.slice(this.tokens.length)) {
      this.element.append(this.#span(token, this.tokens.length));
      this.tokens.push(token);
    }
  }

  #span(token, index) {
    const text = this.decoder.decode(Uint8Array.from(token.bytes), { stream: true });
    const span = element("span", { className: "token", textContent: text, tabIndex: index ? -1 : 0 });
    span.dataset.index = index;
    if (/^\s*\n\s*$/.test(text)) span.classList.add("newline");
    if (!token.bytes.length) span.classList.add("control");
    if (token.isChosen) span.classList.add("chosen");
    if (token.logprob !== null) span.style.setProperty("--surprise", Math.min(1, -token.logprob / HARDEST));
    if (token.top.length) span.ariaLabel = `${shown(token)}, ${percent(token.logprob)}`;
    return span;
  }

  #open(target) {
    const index = Number(target.dataset?.index ?? NaN);
    const token = this.tokens[index];
    if (!token?.top.length) return;
    const before = this.tokens.slice(0, index);
    this.alternatives.open(target, token, before, (chosen) => this.choose(index, chosen));
  }

  #move(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const next = step && this.element.children[Number(event.target.dataset.index) + step];
    if (next) {
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      event.preventDefault();
    } else if (event.key === "Enter" || event.key === "ArrowDown") {
      this.#open(event.target);
      this.alternatives.focus();
      event.preventDefault();
    }
  }
}

/** The list of a token's alternatives; there is one on the page. */
export class Alternatives {
  constructor() {
    this.element = element("div", { className: "alternatives", role: "dialog", ariaLabel: "Alternatives", hidden: true });
    this.element.addEventListener("pointerenter", () => clearTimeout(this.timer));
    this.element.addEventListener("pointerleave", () => this.closeSoon());
    this.element.addEventListener("focusout", (event) => this.closeWithout(event.relatedTarget));
    this.element.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Show a token's alternatives under its anchor; `before` is the tokens that it follows. */
  open(anchor, token, before, choose) {
    clearTimeout(this.timer);
    if (anchor === this.anchor) return;
    this.anchor?.classList.remove("open");
    this.anchor = anchor;
    anchor.classList.add("open");
    const rows = token.top.slice(0, ROWS).map((other) => this.#row(other, token, before, choose));
    const hint = element("p", { className: "hint" }, "Choose one to go on from there.");
    this.element.replaceChildren(...rows, hint);
    this.element.hidden = false;
    this.follow();
  }

  /** Stay with the token when the page moves. */
  follow() {
    if (this.element.hidden) return;
    this.#putUnder(this.anchor.getClientRects()[0] ?? this.anchor.getBoundingClientRect());
  }

  /** Close, and forget what was open. */
  close() {
    clearTimeout(this.timer);
    this.anchor?.classList.remove("open");
    this.anchor = null;
    this.element.hidden = true;
  }

  /** Close unless the pointer comes back. */
  closeSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.close(), CLOSING);
  }

  /** Close where the focus goes to something that is neither a token nor an alternative. */
  closeWithout(focused) {
    if (focused && !focused.closest(".token, .alternatives")) this.close();
  }

  /** Move the focus to the first alternative. */
  focus() {
    this.element.querySelector("button:not(:disabled)")?.focus();
  }

  #row(other, token, before, choose) {
    const isWritten = sameBytes(other, token);
    const row = button("", () => (this.close(), choose(other)), { className: "alternative", disabled: isWritten });
    if (isWritten) row.ariaCurrent = "true";
    if (other.bytes.length && textOf([...before, other]) === null) {
      Object.assign(row, { disabled: true, title: "Part of a character: it cannot be continued as text" });
    }
    const bar = element("span", { className: "probability" });
    bar.style.setProperty("--p", Math.exp(other.logprob));
    row.append(element("code", {}, shown(other)), bar, element("span", { className: "percent" }, percent(other.logprob)));
    return row;
  }

  #putUnder(box) {
    const { offsetWidth: width, offsetHeight: height, style } = this.element;
    const isBelow = box.bottom + height + 12 < innerHeight || box.top < height + 12;
    style.left = `${Math.max(8, Math.min(box.left - 12, innerWidth - width - 8))}px`;
    style.top = `${isBelow ? box.bottom + 4 : box.top - height - 4}px`;
  }

  #move(event) {
    const step = { ArrowUp: "previousElementSibling", ArrowDown: "nextElementSibling" }[event.key];
    if (event.key === "Escape") {
      event.preventDefault();
      this.anchor?.focus();
      this.close();
    } else if (step) {
      let next = document.activeElement[step];
      while (next?.disabled) next = next[step];
      next?.focus();
      event.preventDefault();
    }
  }
}

/** A token's text with its white space made visible. */
function shown({ text, bytes }) {
  if (!bytes.length) return "end of answer";
  return text.replaceAll(" ", "\u00b7").replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5");
}

function sameBytes(one, other) {
  return one.text === other.text && one.bytes.length === other.bytes.length;
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share >= 99.95 ? "100 %" : share < 0.1 ? "< 0.1 %" : `${share.toFixed(1)} %`;
}
