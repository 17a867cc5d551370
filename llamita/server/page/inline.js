// Renders what stands inside a block of Markdown: code, emphasis, links. What is not understood stays text.

import { element } from "./elements.js";

const DEEPEST = 12; // of emphasis in emphasis
const LONGEST = 2000; // characters between two marks of emphasis: keeps hostile text from taking quadratic time

/** Nodes of a line's code, emphasis and links. */
export function inline(text, depth = 0) {
  const nodes = [];
  let plain = "";
  let at = 0;
  while (at < text.length) {
    const found = depth < DEEPEST ? INLINE[text[at]]?.(text, at, depth) : null;
    if (!found) {
      plain += text[at++];
      continue;
    }
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(found[0]);
    at = found[1];
  }
  return plain ? [...nodes, plain] : nodes;
}

// Each rule takes the text and an index, and gives [node, index after it] or null.

function escaped(text, at) {
  return /[\\`*_[\]()#+.!~>|{}-]/.test(text[at + 1] ?? "") ? [text[at + 1], at + 2] : null;
}

function codeSpan(text, at) {
  let ticks = at;
  while (text[ticks] === "`") ticks++;
  const fence = text.slice(at, ticks);
  const end = text.indexOf(fence, ticks);
  if (end < 0) return [fence, ticks];
  return [element("code", {}, text.slice(ticks, end).replace(/^ (.*\S.*) $/, "$1")), end + fence.length];
}

function emphasis(text, at, depth) {
  for (const [mark, tag] of MARKS[text[at]]) {
    if (!text.startsWith(mark, at) || /\s|^$/.test(text[at + mark.length] ?? "")) continue;
    if (mark[0] === "_" && /\w/.test(text[at - 1] ?? "")) continue; // snake_case
    const end = closing(text, at + mark.length, mark);
    if (end > 0) return [element(tag, {}, ...inline(text.slice(at + mark.length, end), depth + 1)), end + mark.length];
  }
  return null;
}

function closing(text, from, mark) {
  const last = from + LONGEST;
  for (let end = text.indexOf(mark, from); end >= 0 && end < last; end = text.indexOf(mark, end + 1)) {
    while (mark.length === 2 && text[end + 2] === mark[0]) end++; // of three marks, the last two are these
    const isOfLonger = mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark);
    const isInWord = mark[0] === "_" && /\w/.test(text[end + mark.length] ?? "");
    if (end > from && !/\s/.test(text[end - 1]) && !isOfLonger && !isInWord) return end;
  }
  return -1;
}

function link(text, at, depth) {
  const found = /^\[([^[\]\n]{1,500})\]\(\s*([^\s()]{1,2000}(?:\([^\s()]{0,500}\))?)\s*\)/.exec(text.slice(at, at + 3100));
  if (!found) return null;
  const made = anchor(found[2], inline(found[1], depth + 1));
  return made && [made, at + found[0].length];
}

function bareLink(text, at) {
  const found = /^https?:\/\/[^\s<>"'`]{1,2000}/.exec(text.slice(at, at + 2100));
  if (!found) return null;
  const address = found[0].replace(/[.,:;!?)\]*_]+$/, "");
  const made = anchor(address, [address]);
  return made && [made, at + address.length];
}

/** A link that tells the other side nothing; null where the address is not of the web. */
function anchor(address, children) {
  if (!/^https?:\/\//i.test(address) || !URL.canParse(address)) return null;
  return element("a", { href: address, rel: "noopener noreferrer nofollow", target: "_blank" }, ...children);
}

const MARKS = {
  "*": [["**", "strong"], ["*", "em"]],
  "_": [["__", "strong"], ["_", "em"]],
  "~": [["~~", "del"]],
};
const INLINE = {
  "\\": escaped, "`": codeSpan, "*": emphasis, "_": emphasis, "~": emphasis, "[": link, h: bareLink,
};
