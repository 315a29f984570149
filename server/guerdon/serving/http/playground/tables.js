// Tables that may be wider than the page.

import { make } from "./dom.js";

// A table with its caption: names of columns, of which the first may be empty, and rows of a name and cells.
export function captionedTable(title, columns, rows) {
  const head = make("thead", "", make("tr", "", ...columns.map((name) => (name ? heading(name, "col") : cell("")))));
  const body = make("tbody", "", ...rows.map(([name, ...cells]) => make("tr", "", heading(name, "row"), ...cells)));
  const scroller = make("div", "scroller", make("table", "", make("caption", "", title), head, body));
  scroller.tabIndex = 0; // so that keys can scroll it
  scroller.setAttribute("role", "region");
  scroller.setAttribute("aria-label", title);
  return scroller;
}

// A cell on one line, or one with a sentence.
export const cell = (text) => make("td", "", text);
export const sentence = (text) => make("td", "sentence", text);

function heading(text, scope) {
  const head = make("th", "", text);
  head.scope = scope;
  return head;
}
