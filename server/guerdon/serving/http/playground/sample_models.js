// The reward models behind the gateway: their cards, and where answers of one's own are ranked.

import { fillCard } from "./cards.js";
import { byId, make } from "./dom.js";

let cards = [];

export const currentCards = () => cards;

// Shows a card for each model, or why there is none.
export function showRewardModels({ models, page }) {
  cards = models.filter((each) => !each.reason);
  byId("cards").replaceChildren(...models.map((each) => (each.reason
    ? make("p", "hint", `The reward model ${each.name} ${each.reason}`)
    : fillCard(make("details"), each, `Card of the reward model ${each.name}`))));
  if (!page) return;
  const link = make("a", "", "the reward server's own page");
  link.href = page;
  byId("reward-page").replaceChildren(link);
}
