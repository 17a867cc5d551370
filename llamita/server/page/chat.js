// The conversation: its turns, the requests that write answers, and what can be done with an answer.

import { AnswerView, QuestionView } from "./answer.js";
import { ApiError } from "./api.js";
import { conversationOf, keep, kept, messagesOf } from "./conversation.js";
import { atMostOncePerFrame, byId } from "./elements.js";
import { saveJson } from "./files.js";
import { modelName, showUsed } from "./models.js";
import { run, showSpeed, speedOf, stop } from "./running.js";
import { askForKey, sampling, setSystemPrompt, systemPrompt } from "./settings.js";
import { Alternatives, textOf, tokensOf, unknownToken } from "./tokens.js";
import { setAside, turnTo } from "./versions.js";

const TOP = 10; // alternatives of each token
const turns = []; // {role, text, view}, and of answers what `newAnswer` has
let last = []; // the turns of the conversation before this one
let written = null; // the `request` of the answer that is being written

/** The list of a token's alternatives. */
export const alternatives = new Alternatives();

/** Ask something at the end of the conversation. */
export function send(text) {
  add(newQuestion(text));
  ask();
}

/** Begin another conversation; `bringBack` shows the last one again. */
export function startOver() {
  last = turns.length ? turns.slice() : last;
  show([]);
}

/** Show the last conversation again. */
export const bringBack = () => show(last);

/** Show what this tab had before it was loaded again. */
export const restore = () => show(kept().map(turnOf));

/** Keep the conversation for the next load of this tab. */
export const keepTurns = () => keep(turns);

/** Save the conversation as the body of a request, if there is one. */
export function saveChat() {
  if (!turns.length) return;
  saveJson("chat.json", { model: modelName(), messages: messagesOf(turns, systemPrompt()), ...sampling() });
}

/** Show the conversation of a file. Throws an Error where it has none. */
export function openChat(json) {
  const { system, turns: opened } = conversationOf(json);
  startOver();
  setSystemPrompt(system);
  show(opened.map(turnOf));
}

/** Draw every answer again, after a change of how answers are shown. */
export function showAgain() {
  for (const turn of turns) if (turn.role === "assistant") draw(turn);
}

// Turns

function newQuestion(text) {
  const question = { role: "user", text };
  question.view = new QuestionView(text, (changed) => edit(question, changed));
  return question;
}

function newAnswer() {
  const answer = {
    role: "assistant", text: "", tokens: [], request: null, system: "", prefix: "", seed: null, count: null, speed: null,
    used: null, finish: null, error: null, replay: null, receipt: null, versions: [], version: 0,
  };
  answer.view = new AnswerView(answer, alternatives, { retry, goOn, replay, choose, saveReceipt, turn });
  return answer;
}

/** A turn of its role, text and whatever else was kept of it. */
const turnOf = (plain) => (plain.role === "user" ? newQuestion(plain.text) : Object.assign(newAnswer(), plain));

/** Show these turns in place of those that are there. */
function show(shown) {
  stop();
  for (const turn of turns.splice(0)) turn.view.element.remove();
  shown.forEach(add);
  showAgain();
  byId("welcome").hidden = turns.length > 0;
  byId("back").hidden = !last.length;
  showUsed(turns.at(-1)?.used ?? null);
  scrollToEnd();
  keepTurns();
}

function add(turn) {
  turns.push(turn);
  byId("turns").append(turn.view.element);
  byId("welcome").hidden = true;
}

function removeAfter(turn) {
  for (const gone of turns.splice(turns.indexOf(turn) + 1)) gone.view.element.remove();
}

function ask() {
  const answer = newAnswer();
  add(answer);
  scrollToEnd();
  write(answer);
}

const page = document.scrollingElement;
const scrollToEnd = () => (page.scrollTop = page.scrollHeight);

const showsTokens = () => byId("probabilities").ariaPressed === "true";
const announce = (text) => (byId("status").textContent = text);

/** Draw an answer; a page that was scrolled to its end stays there. */
function draw(answer) {
  const isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  answer.view.show({ isWriting: written !== null && answer.request === written, asTokens: showsTokens() });
  if (isAtEnd) scrollToEnd();
}

// Requests

/** The settings of a request that writes an answer, or writes it on; null where one of them is wrong. */
function requestFor(answer) {
  const options = sampling();
  if (!options) return null;
  const request = { model: modelName(), seed: newSeed(), ...options };
  if (showsTokens()) Object.assign(request, { logprobs: true, top_logprobs: TOP });
  if (answer.text) request.continue_final_message = true;
  return request;
}

/** The whole request that wrote an answer: turns change only where those after them are gone. */
function bodyOf({ request, system, prefix }, before) {
  const messages = messagesOf(before, system);
  if (prefix) messages.push({ role: "assistant", content: prefix });
  return { ...request, messages };
}

const requestOf = (answer) => bodyOf(answer, turns.slice(0, turns.indexOf(answer)));

const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1; // 31 bits: every server takes them

async function write(answer) {
  const request = requestFor(answer);
  if (!request) return draw(answer);
  const clock = { first: 0, last: 0, count: 0 }; // count: pieces of text, mostly one token each
  begin(answer, request);
  written = request;
  announce("The model is writing.");
  const redraw = atMostOncePerFrame(() => answer.request === request && draw(answer));
  try {
    const done = run(requestOf(answer), (chunk) => {
      if (answer.request !== request) return;
      take(answer, chunk, clock);
      redraw();
    });
    draw(answer);
    await done;
    announce(`Answer: ${answer.text}`);
  } catch (error) {
    if (answer.request === request) fail(answer, error);
  }
  if (written === request) written = null;
  if (!turns.includes(answer)) return;
  draw(answer);
  keepTurns();
}

function begin(answer, request) {
  if (!request.logprobs) answer.tokens = [];
  else if (answer.text !== textOf(answer.tokens)) answer.tokens = [unknownToken(answer.text)];
  const unset = { count: null, speed: null, finish: null, error: null, replay: null, receipt: null };
  Object.assign(answer, { request, system: systemPrompt(), prefix: answer.text, seed: request.seed, ...unset });
}

function take(answer, chunk, clock) {
  const choice = chunk.choices[0];
  if (choice?.delta?.content) {
    answer.text += choice.delta.content;
    clock.last = performance.now();
    clock.first ||= clock.last;
    clock.count++;
    showSpeed(speedOf(null, clock.count, clock));
  }
  answer.tokens.push(...tokensOf(choice?.logprobs));
  answer.finish = choice?.finish_reason ?? answer.finish;
  clock.timings = chunk.timings ?? clock.timings;
  if (chunk.usage) {
    answer.count = chunk.usage.completion_tokens;
    answer.speed = speedOf(clock.timings, answer.count, clock);
    answer.used = chunk.usage.total_tokens;
    showUsed(answer.used);
  }
}

function fail(answer, error) {
  if (error.name === "AbortError") {
    answer.finish = "stopped";
    announce("Stopped.");
    return;
  }
  answer.error = messageOf(error);
  if (error.status === 401) askForKey(error.message);
}

const messageOf = (error) => (error instanceof ApiError ? error.message : `The page failed: ${error.message}`);

// What the buttons of a turn do

function edit(question, text) {
  question.text = text;
  question.view.show(text);
  removeAfter(question);
  ask();
}

function retry(answer) {
  setAside(answer);
  Object.assign(answer, { text: "", tokens: [] });
  goOn(answer);
}

/** Show another version of the last answer. */
function turn(answer, step) {
  stop();
  turnTo(answer, step);
  showUsed(answer.used);
  draw(answer);
  keepTurns();
}

function goOn(answer) {
  removeAfter(answer);
  write(answer);
}

/** Put another token in the place of one, and write on from there; an end-of-answer token ends the answer. */
function choose(answer, index, chosen) {
  stop();
  setAside(answer);
  const before = answer.tokens.slice(0, index);
  const isEnd = !chosen.bytes.length;
  answer.tokens = isEnd ? before : [...before, { ...chosen, top: answer.tokens[index].top, isChosen: true }];
  answer.text = textOf(answer.tokens);
  if (!isEnd) return goOn(answer);
  const unset = { request: null, count: null, speed: null, seed: null, replay: null, receipt: null, error: null };
  Object.assign(answer, { ...unset, finish: "stop" });
  removeAfter(answer);
  draw(answer);
  keepTurns();
}

/** Send the answer's request once more, and say whether the same text comes back; its receipt comes with it. */
async function replay(answer) {
  const { request: replayed } = answer;
  const say = (outcome, text) => {
    if (answer.request !== replayed) return; // another version is shown by now
    answer.replay = { outcome, text };
    announce(text);
    draw(answer);
  };
  const expected = answer.text.slice(answer.prefix.length);
  const request = requestOf(answer);
  let text = "";
  let receipts = null;
  say("pending", "replaying\u2026");
  try {
    await run({ ...request, receipt: true }, (chunk) => {
      text += chunk.choices[0]?.delta?.content ?? "";
      receipts = chunk.receipts ?? receipts;
    });
    if (answer.request === replayed) answer.receipt = receipts && text === expected ? { request, receipts } : null;
    if (text === expected) say("same", "replayed: the same");
    else say("other", `replayed: differs from character ${firstDifference(text, expected) + 1} on`);
  } catch (error) {
    if (error.name === "AbortError") say("pending", "replay stopped");
    else say("other", `replay failed: ${messageOf(error)}`);
  }
}

/** Save what `llamita replay` writes an answer again from. */
const saveReceipt = (answer) => saveJson("receipt.json", answer.receipt);

function firstDifference(one, other) {
  let at = 0;
  while (at < one.length && one[at] === other[at]) at++;
  return at;
}
