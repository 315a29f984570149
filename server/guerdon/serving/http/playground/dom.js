// Elements and numbers as the page shows them. Text is only ever set as text, never as markup.

export const byId = (id) => document.getElementById(id);

export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// A list of names with what they stand for, from pairs of both.
export function fillFacts(list, facts) {
  list.replaceChildren(...facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
  return list;
}

// A score with its sign: three decimals, or an exponent where they would all be zero.
export function signed(value) {
  const text = value !== 0 && Math.abs(value) < 0.0005 ? value.toExponential(2) : value.toFixed(3);
  return value > 0 ? `+${text}` : text;
}

export function duration(seconds) {
  return seconds < 1 ? `${(1000 * seconds).toFixed(1)}\u00a0ms` : `${seconds.toFixed(2)}\u00a0s`;
}

export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}
