// Renders the Markdown that models write, as DOM nodes. What is not understood stays text.

import { element } from "./elements.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +)(.*)$/;
const DEEPEST = 12; // of lists and quotes in each other
const LONGEST = 2000; // characters between two marks of emphasis: keeps hostile text from taking quadratic time

/** A fragment with the blocks of a text. */
export function render(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.split("\n"), 0));
  return fragment;
}

function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const rule = depth < DEEPEST ? BLOCKS.find(([begins]) => begins.test(lines[at])) : undefined;
    const [node, next] = (rule ? rule[1] : paragraph)(lines, at, depth);
    if (node) made.push(node);
    at = next;
  }
  return made;
}

// Each takes the lines and the first line's index, and gives a node and the index after the block.

function blank(_lines, at) {
  return [null, at + 1];
}

function code(lines, at) {
  const [, fence, language] = lines[at].match(FENCE);
  let end = at + 1;
  while (end < lines.length && !isClosing(lines[end], fence)) end++;
  const inner = element("code", {}, lines.slice(at + 1, end).join("\n"));
  const block = element("pre", { tabIndex: 0 }, inner);
  if (language) block.dataset.language = language;
  return [block, end + 1];
}

function isClosing(line, fence) {
  const trimmed = line.trim();
  return trimmed.length >= fence.length && trimmed === fence[0].repeat(trimmed.length);
}

function heading(lines, at) {
  const [, marks, text] = lines[at].match(HEADING);
  // The page has an h1 of its own.
  return [element(`h${Math.min(marks.length + 1, 6)}`, {}, ...inline(text.replace(/\s#+\s*$/, ""))), at + 1];
}

function thematicBreak(_lines, at) {
  return [element("hr"), at + 1];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [element("blockquote", {}, ...blocks(inner, depth + 1)), end];
}

function list(lines, at, depth) {
  const first = lines[at].match(ITEM);
  const isOrdered = /\d/.test(first[2]);
  const made = element(isOrdered ? "ol" : "ul", isOrdered ? { start: parseInt(first[2], 10) } : {});
  let next = at;
  while (next < lines.length) {
    const item = lines[next].match(ITEM);
    if (!item || item[1].length > first[1].length + 1 || /\d/.test(item[2]) !== isOrdered) break;
    const [inner, end] = itemLines(lines, next, item);
    made.append(element("li", {}, ...unwrapped(blocks(inner, depth + 1))));
    next = end;
  }
  return [made, next];
}

/** The lines of one item without their indent, and the index after them. */
function itemLines(lines, at, [, indent, , , text]) {
  const inner = [text];
  let end = at + 1;
  for (; end < lines.length; end++) {
    const line = lines[end];
    const depth = line.length - line.trimStart().length;
    const isBlank = !line.trim();
    if (isBlank && !/^\s+\S/.test(lines[end + 1] ?? "") && !ITEM.test(lines[end + 1] ?? "")) break;
    if (!isBlank && depth <= indent.length && (ITEM.test(line) || !inner.at(-1).trim() || startsBlock(line))) break;
    inner.push(line.slice(Math.min(depth, indent.length + 2)));
  }
  return [inner, end];
}

/** A lone paragraph of a list item as its children: tight lists have none. */
function unwrapped(nodes) {
  return nodes.flatMap((node, i) => (node.tagName === "P" && i === 0 ? [...node.childNodes] : [node]));
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !startsBlock(lines[end])) end++;
  return [element("p", {}, ...inline(lines.slice(at, end).join("\n").trim())), end];
}

const startsBlock = (line) => BLOCKS.some(([begins]) => begins.test(line));
const BLOCKS = [
  [/^\s*$/, blank],
  [FENCE, code],
  [HEADING, heading],
  [RULE, thematicBreak],
  [QUOTE, quote],
  [ITEM, list],
];

// Inside a block: each rule takes the text and an index, and gives [node, index after it] or null.

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
  for (const [mark, tag] of [[text[at].repeat(2), "strong"], [text[at], "em"]]) {
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

const INLINE = {
  "\\": escaped, "`": codeSpan, "*": emphasis, "_": emphasis, "[": link, h: bareLink,
};
