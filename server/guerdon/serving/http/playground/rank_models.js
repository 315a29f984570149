// The served models: their list, and the card of the chosen one.

import { fillCard, short } from "./cards.js";
import { byId, make } from "./dom.js";

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

export function showCard() {
  const model = chosenModel();
  byId("card").hidden = !model;
  if (model) fillCard(byId("card"), model, "The model's card");
}
