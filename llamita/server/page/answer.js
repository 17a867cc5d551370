// One turn of the conversation on the page: what was asked, or what was answered.

import { copyButton } from "./clipboard.js";
import { button, byId, element, fitHeight, onEnter } from "./elements.js";
import { Markdown } from "./markdown.js";
import { TokenText } from "./tokens.js";
import { countOf } from "./versions.js";

const ENDS = { length: "cut at the limit", stopped: "stopped" };

/** What a user wrote, which can be edited in place; `edit(text)` is called with the new text. */
export class QuestionView {
  constructor(text, edit) {
    this.element = element("li", { className: "turn question" });
    this.edit = edit;
    this.show(text);
  }

  /** Show the text. */
  show(text) {
    const change = button("Edit", () => this.#open(text), { className: "quiet" });
    this.element.replaceChildren(
      element("h2", { className: "unseen" }, "You"),
      element("div", { className: "said" }, text),
      element("div", { className: "actions" }, change),
    );
    this.change = change;
  }

  #open(text) {
    const area = element("textarea", { value: text, ariaLabel: "Edit your message", rows: 1 });
    const send = () => area.value.trim() && this.edit(area.value.trim());
    const close = () => (this.show(text), this.change.focus());
    const buttons = element("div", { className: "actions" }, button("Cancel", close, { className: "quiet" }),
      button("Send", send, { className: "quiet strong" }));
    this.element.replaceChildren(element("div", { className: "editor" }, area), buttons);
    onEnter(area, send);
    area.addEventListener("input", () => fitHeight(area));
    area.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.preventDefault();
      close();
    });
    fitHeight(area);
    area.focus();
  }
}

/** What a model wrote. `actions` has retry, goOn, replay, choose, saveReceipt and turn, each called with the answer first. */
export class AnswerView {
  constructor(answer, alternatives, actions) {
    this.answer = answer;
    this.alternatives = alternatives;
    this.actions = actions;
    this.body = element("div", { className: "body", dir: "auto" });
    this.markdown = new Markdown(this.body);
    this.foot = element("div", { className: "foot" });
    this.element = element("li", { className: "turn answer" }, element("h2", { className: "unseen" }, "Answer"), this.body, this.foot);
  }

  /** Show the answer as it is now, as tokens where `asTokens` says so and they are known. */
  show({ isWriting, asTokens }) {
    const { answer } = this;
    this.element.classList.toggle("writing", isWriting);
    this.element.ariaBusy = String(isWriting);
    if (asTokens && answer.tokens.length) this.#showTokens();
    else this.#showText();
    this.#showFoot(isWriting ? [] : [this.#notice(), this.#facts(), this.#buttons()].filter(Boolean));
  }

  /** The focus stays on the button that it was on, or goes to the first one, or to the one that stops. */
  #showFoot(children) {
    const focused = this.foot.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.foot.replaceChildren(...children);
    if (focused === null) return;
    const enabled = [...this.foot.querySelectorAll("button:enabled")];
    const same = enabled.find((one) => one.textContent === focused);
    (same ?? enabled[0] ?? byId("stop")).focus();
  }

  #showText() {
    this.tokens = null;
    this.markdown.show(this.answer.text);
  }

  #showTokens() {
    const isShown = this.tokens && this.tokens.tokens.every((token, i) => token === this.answer.tokens[i]);
    if (!isShown) {
      this.tokens = new TokenText(this.alternatives, (index, chosen) => this.actions.choose(this.answer, index, chosen));
      this.markdown.forget();
      this.body.replaceChildren(this.tokens.element);
    }
    this.tokens.show(this.answer.tokens);
  }

  #notice() {
    const { error } = this.answer;
    return error && element("p", { className: "notice", role: "alert" }, error);
  }

  #facts() {
    const { count, speed, seed, finish, replay } = this.answer;
    const facts = [
      count !== null && `${count} ${count === 1 ? "token" : "tokens"}`,
      speed !== null && `${speed} tokens/s`,
      ENDS[finish],
      seed !== null && `seed ${seed}`,
    ].filter(Boolean);
    const made = element("p", { className: "facts" }, facts.join(" \u00b7 "));
    if (replay) made.append(facts.length ? " \u00b7 " : "", element("span", { className: replay.outcome }, replay.text));
    return made;
  }

  #buttons() {
    const { answer, actions } = this;
    const made = element("div", { className: "actions" });
    const add = (text, call, title) => made.append(button(text, call, { className: "quiet", title }));
    if (answer.text) made.append(copyButton(() => answer.text, "Copy the answer as Markdown"));
    add(answer.error ? "Try again" : "Retry", () => actions.retry(answer), "Write this answer again");
    if (countOf(answer) > 1) made.append(this.#versions());
    if (answer.text && (answer.finish === "length" || answer.finish === "stopped" || answer.error)) {
      add("Go on", () => actions.goOn(answer), "Go on from where the answer ends");
    }
    if (answer.request && !answer.error && answer.finish !== "stopped") {
      add("Replay", () => actions.replay(answer), "Send the same request with the same seed, and compare");
    }
    if (answer.receipt) {
      add("Receipt", () => actions.saveReceipt(answer), "Save a file from which llamita replay writes this answer again");
    }
    return made;
  }

  /** What leads to the other versions; the style hides it once the conversation has gone on. */
  #versions() {
    const { answer, actions } = this;
    const count = countOf(answer);
    const to = (text, step, title) => {
      const isEnd = !(answer.version + step in answer.versions);
      return button(text, () => actions.turn(answer, step), { className: "quiet", title, ariaLabel: title, disabled: isEnd });
    };
    return element("span", { className: "versions" }, to("\u2039", -1, "The answer before"),
      `${answer.version + 1} of ${count}`, to("\u203a", 1, "The answer after"));
  }
}
