// A score as a number and as a bar.

import { make, signed } from "./dom.js";

// Makes the bars of these scores, which have one scale: each reaches from zero to its score.
export function barsFor(scores) {
  const low = Math.min(0, ...scores);
  const width = Math.max(0, ...scores) - low || 1;
  return (score) => {
    const fill = make("span", score < 0 ? "below" : "above");
    fill.style.setProperty("--start", (Math.min(0, score) - low) / width);
    fill.style.setProperty("--size", Math.abs(score) / width);
    const whole = make("div", "bar", fill);
    whole.setAttribute("aria-hidden", "true"); // the number beside it says the same
    return whole;
  };
}

// A name with its score; null where it has none.
export const scoreHead = (name, score) =>
  make("h3", "", make("span", "", name), " ", make("span", "score", score === null ? "no score" : signed(score)));
