// The request that runs: there is one at most, and the page shows that it can be stopped, and how fast it is.

import { streamChat } from "./api.js";
import { byId } from "./elements.js";
import { apiKey } from "./settings.js";

let running = null; // its AbortController

/** Whether a request runs. */
export const isRunning = () => running !== null;

/** Stop the request that runs; what is written stays. */
export const stop = () => running?.abort();

/** Send a request in place of the one that runs, and give each chunk to a function. Throws what streamChat does. */
export async function run(request, take) {
  stop();
  const mine = (running = new AbortController());
  showStop(true);
  try {
    for await (const chunk of streamChat(request, apiKey(), mine.signal)) take(chunk);
  } finally {
    if (running === mine) {
      running = null;
      showStop(false);
      showSpeed(null);
    }
  }
}

/** Tokens a second as the server measured them, or from the first to the last that came; null where it is unknown. */
export function speedOf(timings, count, { first, last }) {
  const speed = timings?.predicted_per_second ?? (last > first ? (1000 * (count - 1)) / (last - first) : null);
  return speed === null ? null : speed < 10 ? speed.toFixed(1) : Math.round(speed);
}

/** Show how fast the request is. */
export const showSpeed = (speed) => (byId("speed").textContent = speed === null ? "" : `${speed} tokens/s`);

function showStop(isRunning) {
  const [shown, gone] = [byId(isRunning ? "stop" : "send"), byId(isRunning ? "send" : "stop")];
  const hasFocus = document.activeElement === gone;
  shown.hidden = false;
  gone.hidden = true;
  if (hasFocus) shown.focus();
}
