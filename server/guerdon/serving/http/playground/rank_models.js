// The served models: their list, and the card of the chosen one.

import { byId, counted, fillFacts, make } from "./dom.js";

let models = new Map(); // what a request asks for, and the model that it means

// Fills the list; what was chosen stays so where it is still there.
export function listModels(replies) {
  const list = byId("model");
  const before = list.value;
  models = new Map();
  for (const model of replies) {
    if (!model.current) models.set(`${model.name}@${model.revision}`, model);
    else for (const name of [model.name, ...model.aliases]) models.set(name, model);
  }
  list.replaceChildren(
    ...[...models].map(([name, model]) => {
      const label = !model.current ? `${model.name}@${short(model.revision)}`
        : name === model.name ? name : `${name} → ${model.name}`;
      const option = make("option", "", label);
      option.value = name;
      return option;
    }),
  );
  if (models.has(before)) list.value = before;
}

export const chosenModel = () => models.get(byId("model").value);

export const short = (revision) => revision.slice(0, 12);

export function showCard() {
  const model = chosenModel();
  byId("card").hidden = !model;
  if (!model) return;
  byId("card-summary").textContent =
    `The model's card: ${model.kind}, ${counted(model.max_tokens, "token")} at most, revision ${short(model.revision)}`;
  const told = Object.entries(model).map(([key, value]) => [key.replaceAll("_", " "), inWords(value)]);
  fillFacts(byId("card-facts"), told.filter(([, value]) => value !== ""));
}

function inWords(value) {
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "object") return Object.entries(value).map(([key, each]) => `${key} × ${each}`).join(", ");
  if (typeof value === "boolean") return value ? "yes" : "no";
  return Number.isInteger(value) ? value.toLocaleString("en") : String(value);
}
