// Renders the Markdown that models write, as DOM nodes. What is not understood stays text.

import { copyButton } from "./clipboard.js";
import { element } from "./elements.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const DASHES = /^ {0,3}\|?( *:?-+:? *\|)* *:?-+:? *\|? *$/; // under the first row of a table
// Properties of a column's cells, by whether colons are before and after its dashes.
const SIDES = { "true true": { className: "center" }, "false true": { className: "right" } };
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +)(.*)$/;
const TASK = /^\[([ xX])\] /; // at the beginning of an item
const DEEPEST = 12; // of lists and quotes in each other

/** Shows a text in an element. Where a text grows, what cannot change any more stays, and with it selection and focus. */
export class Markdown {
  #parent;
  #settled = ""; // the text of the blocks that cannot change any more
  #kept = 0; // how many blocks these are

  constructor(parent) {
    this.#parent = parent;
  }

  /** Show a text in place of the last one. */
  show(text) {
    if (!text.startsWith(this.#settled)) this.forget();
    const lines = text.slice(this.#settled.length).split("\n");
    const made = blocks(lines, 0);
    while (this.#parent.childNodes.length > this.#kept) this.#parent.lastChild.remove();
    this.#parent.append(...made.map(([node]) => node));
    // What comes can change how the last two lines begin: "***" is a rule, "***a***" is none; and the block before them.
    const open = made.findLastIndex(([, at]) => at < lines.length - 2);
    if (open < 1) return;
    this.#settled += lines.slice(0, made[open][1]).map((line) => `${line}\n`).join("");
    this.#kept += open;
  }

  /** Take nothing that the element has for this text. */
  forget() {
    this.#settled = "";
    this.#kept = 0;
  }
}

/** Pairs of a block's node and the index of its first line. */
function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const rule = depth < DEEPEST ? BLOCKS.find(([begins]) => begins(lines, at)) : undefined;
    const [node, next] = (rule ? rule[1] : paragraph)(lines, at, depth);
    if (node) made.push([node, at]);
    at = next;
  }
  return made;
}

const nodes = (lines, depth) => blocks(lines, depth).map(([node]) => node);

// Each takes the lines and the first line's index, and gives a node and the index after the block.

function blank(_lines, at) {
  return [null, at + 1];
}

function code(lines, at) {
  const [, fence, language] = lines[at].match(FENCE);
  let end = at + 1;
  while (end < lines.length && !isClosing(lines[end], fence)) end++;
  const text = lines.slice(at + 1, end).join("\n");
  const head = element("div", { className: "code-head" }, language, copyButton(() => text, "Copy the code"));
  return [element("div", { className: "code", dir: "ltr" }, head, element("pre", { tabIndex: 0 }, element("code", {}, text))), end + 1];
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
  return [element("blockquote", { dir: "auto" }, ...nodes(inner, depth + 1)), end];
}

function list(lines, at, depth) {
  const first = lines[at].match(ITEM);
  const isOrdered = /\d/.test(first[2]);
  const start = isOrdered ? { start: parseInt(first[2], 10) } : {};
  const made = element(isOrdered ? "ol" : "ul", { dir: "auto", ...start });
  let next = at;
  while (next < lines.length) {
    const item = lines[next].match(ITEM);
    if (!item || item[1].length > first[1].length + 1 || /\d/.test(item[2]) !== isOrdered) break;
    const [inner, end] = itemLines(lines, next, item);
    made.append(listItem(inner, depth));
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
    if (!isBlank && depth <= indent.length && (ITEM.test(line) || !inner.at(-1).trim() || startsBlock(lines, end))) break;
    inner.push(line.slice(Math.min(depth, indent.length + 2)));
  }
  return [inner, end];
}

/** An item, with the box of one that is done or to be done. */
function listItem([first, ...rest], depth) {
  const [mark, state] = first.match(TASK) ?? [];
  const text = mark ? `${state === " " ? "\u2610" : "\u2611"} ${first.slice(mark.length)}` : first;
  return element("li", mark ? { className: "task" } : {}, ...unwrapped(nodes([text, ...rest], depth + 1)));
}

/** A lone paragraph of a list item as its children: tight lists have none. */
function unwrapped(children) {
  return children.flatMap((node, i) => (node.tagName === "P" && i === 0 ? [...node.childNodes] : [node]));
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !startsBlock(lines, end)) end++;
  return [element("p", {}, ...inline(lines.slice(at, end).join("\n").trim())), end];
}

/** Whether a line of cells and a line of dashes under it begin a table, with as many of the one as of the other. */
function beginsTable(lines, at) {
  const dashes = lines[at + 1] ?? "";
  return lines[at].includes("|") && DASHES.test(dashes) && cells(lines[at]).length === cells(dashes).length;
}

function table(lines, at) {
  const sides = cells(lines[at + 1]).map((dashes) => SIDES[`${dashes.startsWith(":")} ${dashes.endsWith(":")}`] ?? {});
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !startsBlock(lines, end)) end++;
  const rows = lines.slice(at + 2, end).map((line) => row(line, "td", sides));
  const made = element("table", { dir: "auto" }, element("thead", {}, row(lines[at], "th", sides)), element("tbody", {}, ...rows));
  return [element("div", { className: "wide-table", tabIndex: 0 }, made), end];
}

/** A row with as many cells as the table has columns. */
function row(line, tag, sides) {
  const texts = cells(line);
  return element("tr", {}, ...sides.map((side, i) => element(tag, side, ...inline(texts[i] ?? ""))));
}

/** The texts of a row's cells; a bar after a backslash is a character of its cell. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((text) => text.trim().replaceAll("\\|", "|"));
}

const startsBlock = (lines, at) => BLOCKS.some(([begins]) => begins(lines, at));
const startsWith = (pattern) => (lines, at) => pattern.test(lines[at]);
const BLOCKS = [
  [startsWith(/^\s*$/), blank],
  [startsWith(FENCE), code],
  [startsWith(HEADING), heading],
  [startsWith(RULE), thematicBreak],
  [startsWith(QUOTE), quote],
  [startsWith(ITEM), list],
  [beginsTable, table],
];
