// A model's card: all that its server knows of it.

import { counted, fillFacts, make } from "./dom.js";

export const short = (revision) => revision.slice(0, 12);

// Fills a <details> with a card; a judge's has no most tokens.
export function fillCard(details, card, title) {
  const most = card.max_tokens ? `, ${counted(card.max_tokens, "token")} at most` : "";
  const summary = `${title}: ${card.kind}${most}, revision ${short(card.revision)}`;
  const known = Object.entries(card).filter(([key, value]) => key !== "max_tokens" || value);
  const told = known.map(([key, value]) => [key.replaceAll("_", " "), inWords(value)]);
  const facts = fillFacts(make("dl", "facts"), told.filter(([, value]) => value !== ""));
  details.replaceChildren(make("summary", "", summary), facts);
  return details;
}

function inWords(value) {
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "object") return Object.entries(value).map(([key, each]) => `${key} × ${each}`).join(", ");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "string") return value;
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}
