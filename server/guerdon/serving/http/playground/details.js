// What a model says of an answer beside its score: steps as coloured spans, tables of attributes and members.

import { make, signed } from "./dom.js";
import { captionedTable, cell } from "./tables.js";

// What the colours mean, where any of the answers has steps.
export function stepsHint(answers) {
  if (!answers.some(({ steps = [] }) => steps.length)) return [];
  return [make("p", "hint", "Steps are blue above 0; orange, with a dashed line, below 0.")];
}

// The answer, its steps coloured. The server refuses answers whose written markers are not those
// that it scored, but a chat template may add markers to an answer that has none.
export function answerText(text, { steps = [] }, card) {
  const marker = card?.step_marker;
  const written = marker ? text.split(marker) : [text];
  const shown = make("p", "text");
  if (steps.length === written.length - 1) {
    const rest = written.pop();
    shown.append(...steps.map((step, i) => stepSpan(written[i], step.score, i)), rest);
  } else {
    shown.append(text, ...steps.map((step, i) => stepSpan(" ", step.score, i)));
  }
  return shown;
}

// The farther from 0 the step's score is, the stronger its colour; it is also written after it.
function stepSpan(text, score, i) {
  const number = make("b", "step-score", make("span", "unseen", ` Step ${i + 1}: `), signed(score));
  const span = make("span", score < 0 ? "step below" : "step above", text, number);
  span.style.setProperty("--strength", Math.abs(Math.tanh(score / 2)));
  return span;
}

// Tables of what one model says of answers, given as pairs of a name and what is said; `of` ends the titles.
export function detailTables(answers, card, of = "") {
  const [[, { attributes = [], members = [] }]] = answers;
  const weight = (name) => (card?.attributes[name] ? `${name} × ${card.attributes[name]}` : name);
  const vote = card?.kind === "judge";
  return [
    ...valuesTable(`Attributes, each as the model gives it${of}`, answers,
      attributes.map(({ name }, i) => [weight(name), (said) => said.attributes[i].value])),
    ...valuesTable(`${vote ? "Votes of the judge" : "Members of the ensemble"}${of}`, answers,
      members.map((_, i) => [card?.members[i] ?? `${vote ? "Vote" : "Member"} ${i + 1}`, (said) => said.members[i]])),
  ];
}

// A row for each name with its values, a column for each answer; none without a row.
function valuesTable(title, answers, rows) {
  if (rows.length === 0) return [];
  return [captionedTable(title, ["", ...answers.map(([name]) => name)],
    rows.map(([name, valueOf]) => [name, ...answers.map(([, said]) => cell(signed(valueOf(said))))]))];
}
