// The versions of an answer: what it was before each retry, and before another token was chosen.

const FIELDS = [
  "text", "tokens", "request", "system", "prefix", "seed", "count", "speed", "used", "finish", "error", "replay", "receipt",
];

/** Put what an answer is now among its versions, before it is written anew. */
export function setAside(answer) {
  if (!answer.text) return;
  store(answer);
  answer.version = answer.versions.length;
}

/** Make an answer the version before or after the one that it is. */
export function turnTo(answer, step) {
  store(answer);
  answer.version += step;
  Object.assign(answer, answer.versions[answer.version]);
}

/** How many versions an answer has, with the one that it is. */
export const countOf = ({ versions, version }) => Math.max(versions.length, version + 1);

function store(answer) {
  const finish = answer.finish ?? (answer.error ? null : "stopped"); // by what comes in its place
  answer.versions[answer.version] = { ...Object.fromEntries(FIELDS.map((name) => [name, answer[name]])), finish };
}
