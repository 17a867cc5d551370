// The conversation: its turns, the requests that write answers, and what can be done with an answer.

import { AnswerView, QuestionView } from "./answer.js";
import { ApiError, streamChat } from "./api.js";
import { atMostOncePerFrame, byId } from "./elements.js";
import { modelName, showUsage } from "./models.js";
import { apiKey, askForKey, sampling, systemPrompt } from "./settings.js";
import { Alternatives, textOf, tokensOf, unknownToken } from "./tokens.js";

const TOP = 10; // alternatives of each token
const turns = []; // {role, text, view}, and of answers what `newAnswer` has
let running = null; // the AbortController of the request that runs
let written = null; // the answer that it writes

/** The list of a token's alternatives. */
export const alternatives = new Alternatives();

/** Whether a request runs. */
export const isWriting = () => running !== null;

/** Stop the request that runs; what is written stays. */
export const stop = () => running?.abort();

/** Ask something at the end of the conversation. */
export function send(text) {
  const question = { role: "user", text };
  question.view = new QuestionView(text, (changed) => edit(question, changed));
  add(question);
  ask();
}

/** Forget the conversation. */
export function startOver() {
  stop();
  for (const turn of turns.splice(0)) turn.view.element.remove();
  byId("welcome").hidden = false;
  showUsage(null);
}

/** Draw every answer again, after a change of how answers are shown. */
export function showAgain() {
  for (const turn of turns) if (turn.role === "assistant") show(turn);
}

// Turns

function newAnswer() {
  const answer = {
    role: "assistant", text: "", tokens: [], request: null, prefix: "", seed: null, count: null, speed: null,
    finish: null, error: null, replay: null,
  };
  answer.view = new AnswerView(answer, alternatives, { retry, goOn, replay, choose });
  return answer;
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
  answer.view.element.scrollIntoView({ block: "end" });
  write(answer);
}

const showsTokens = () => byId("probabilities").ariaPressed === "true";
const announce = (text) => (byId("status").textContent = text);

/** Draw an answer; a page that was scrolled to its end stays there. */
function show(answer) {
  const page = document.scrollingElement;
  const isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  answer.view.show({ isWriting: answer === written, asTokens: showsTokens() });
  if (isAtEnd) page.scrollTop = page.scrollHeight;
}

// Requests

/** The request that writes an answer on from the text that it has; null where a setting is wrong. */
function requestFor(answer) {
  const options = sampling();
  if (!options) return null;
  const before = turns.slice(0, turns.indexOf(answer)).map(({ role, text }) => ({ role, content: text }));
  const system = systemPrompt();
  const messages = system ? [{ role: "system", content: system }, ...before] : before;
  const request = { model: modelName(), messages, seed: newSeed(), ...options };
  if (showsTokens()) Object.assign(request, { logprobs: true, top_logprobs: TOP });
  if (answer.text) {
    messages.push({ role: "assistant", content: answer.text });
    request.continue_final_message = true;
  }
  return request;
}

const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1; // 31 bits: every server takes them

/** Send a request and give each chunk to a function; `answer` is what it writes, if any. Throws what streamChat does. */
async function run(request, answer, take) {
  stop();
  const mine = (running = new AbortController());
  written = answer;
  showStop(true);
  try {
    for await (const chunk of streamChat(request, apiKey(), mine.signal)) take(chunk);
  } finally {
    if (running === mine) {
      running = written = null;
      showStop(false);
      byId("speed").textContent = "";
    }
  }
}

function showStop(isRunning) {
  const [shown, gone] = [byId(isRunning ? "stop" : "send"), byId(isRunning ? "send" : "stop")];
  const hasFocus = document.activeElement === gone;
  shown.hidden = false;
  gone.hidden = true;
  if (hasFocus) shown.focus();
}

async function write(answer) {
  const request = requestFor(answer);
  if (!request) return show(answer);
  const clock = { first: 0, last: 0, count: 0 }; // count: pieces of text, mostly one token each
  begin(answer, request);
  announce("The model is writing.");
  const redraw = atMostOncePerFrame(() => answer === written && show(answer));
  try {
    const done = run(request, answer, (chunk) => {
      if (answer.request !== request) return;
      take(answer, chunk, clock);
      redraw();
    });
    show(answer);
    await done;
    announce(`Answer: ${answer.text}`);
  } catch (error) {
    if (answer.request === request) fail(answer, error);
  }
  if (turns.includes(answer)) show(answer);
}

function begin(answer, request) {
  if (!request.logprobs) answer.tokens = [];
  else if (answer.text !== textOf(answer.tokens)) answer.tokens = [unknownToken(answer.text)];
  const unset = { count: null, speed: null, finish: null, error: null, replay: null };
  Object.assign(answer, { request, prefix: answer.text, seed: request.seed, ...unset });
}

function take(answer, chunk, clock) {
  const choice = chunk.choices[0];
  if (choice?.delta?.content) {
    answer.text += choice.delta.content;
    clock.last = performance.now();
    clock.first ||= clock.last;
    clock.count++;
    byId("speed").textContent = speedText(speedOf(null, clock.count, clock));
  }
  answer.tokens.push(...tokensOf(choice?.logprobs));
  answer.finish = choice?.finish_reason ?? answer.finish;
  clock.timings = chunk.timings ?? clock.timings;
  if (chunk.usage) {
    answer.count = chunk.usage.completion_tokens;
    answer.speed = speedOf(clock.timings, answer.count, clock);
    showUsage(chunk.usage);
  }
}

/** Tokens a second as the server measured them, or from the first to the last that came; null where it is unknown. */
function speedOf(timings, count, { first, last }) {
  const speed = timings?.predicted_per_second ?? (last > first ? (1000 * (count - 1)) / (last - first) : null);
  return speed === null ? null : speed < 10 ? speed.toFixed(1) : Math.round(speed);
}

const speedText = (speed) => (speed === null ? "" : `${speed} tokens/s`);

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
  Object.assign(answer, { text: "", tokens: [] });
  goOn(answer);
}

function goOn(answer) {
  removeAfter(answer);
  write(answer);
}

/** Put another token in the place of one, and write on from there; an end-of-answer token ends the answer. */
function choose(answer, index, chosen) {
  stop();
  const before = answer.tokens.slice(0, index);
  const isEnd = !chosen.bytes.length;
  answer.tokens = isEnd ? before : [...before, { ...chosen, top: answer.tokens[index].top, isChosen: true }];
  answer.text = textOf(answer.tokens);
  if (!isEnd) return goOn(answer);
  const unset = { request: null, count: null, speed: null, seed: null, replay: null, error: null };
  Object.assign(answer, { ...unset, finish: "stop" });
  removeAfter(answer);
  show(answer);
}

/** Send the answer's request once more, and say whether the same text comes back. */
async function replay(answer) {
  const say = (outcome, text) => {
    answer.replay = { outcome, text };
    announce(text);
    show(answer);
  };
  const expected = answer.text.slice(answer.prefix.length);
  let text = "";
  say("pending", "replaying\u2026");
  try {
    await run(answer.request, null, (chunk) => (text += chunk.choices[0]?.delta?.content ?? ""));
    if (text === expected) say("same", "replayed: the same");
    else say("other", `replayed: differs from character ${firstDifference(text, expected) + 1} on`);
  } catch (error) {
    if (error.name === "AbortError") say("pending", "replay stopped");
    else say("other", `replay failed: ${messageOf(error)}`);
  }
}

function firstDifference(one, other) {
  let at = 0;
  while (at < one.length && one[at] === other[at]) at++;
  return at;
}
