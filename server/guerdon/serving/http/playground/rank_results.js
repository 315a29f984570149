// What the server found: a ranked list, tables of attributes and members, timings.

import { byId, counted, duration, fillFacts, make, signed } from "./dom.js";
import { short } from "./rank_models.js";
import { barsFor, scoreHead } from "./scores.js";
import { captionedTable, cell } from "./tables.js";

// `asked` is the request that `reply` answers, and `model` the card of what it asked.
export function showResults(reply, asked, model, roundTrip) {
  byId("found").replaceChildren(
    make("p", "hint", madeBy(reply.info)),
    ...(model.step_marker ? [make("p", "hint", "Steps are blue above 0; orange, with a dashed line, below 0.")] : []),
    rankedList(reply.ranking, asked.candidates, model),
    ...tables(reply.ranking, model),
    make("h3", "", "Time"),
    timings(reply.timing, roundTrip),
  );
}

// The outcome in one sentence, for the live region.
export function inShort(ranking) {
  const [best] = ranking;
  return `${counted(ranking.length, "answer")} scored. Best: ${nameOf(best)}, ${signed(best.score.score)}.`;
}

const nameOf = ({ index }) => `Answer ${index + 1}`;

function madeBy(info) {
  const scale = [];
  if (info.normalized) scale.push(`normalised (mean ${signed(info.mean)}, standard deviation ${info.std.toFixed(3)})`);
  if (info.activation !== "none") scale.push(`after a ${info.activation}`);
  return `${info.model}@${short(info.revision)}, scores ${scale.join(", ") || "as the model gives them"}`;
}

function rankedList(ranking, candidates, model) {
  const bar = barsFor(ranking.map((each) => each.score.score));
  const list = make("ol", "ranking");
  list.append(
    ...ranking.map((each) => {
      const { score } = each.score;
      return make("li", "", scoreHead(nameOf(each), score), bar(score),
        answerText(candidates[each.index], each.score.steps, model), make("p", "hint", tokens(each.score)));
    }),
  );
  return list;
}

function tokens(score) {
  const facts = [counted(score.token_count, "token")];
  if (score.reused_tokens) facts.push(`${score.reused_tokens.toLocaleString("en")} of them known from another answer or call`);
  if (score.truncated_tokens) facts.push(`${counted(score.truncated_tokens, "token")} of the prompt cut`);
  if (score.dropped.length) facts.push(`the chat template left out: ${score.dropped.join(", ")}`);
  if (score.spread !== undefined) facts.push(`spread ${score.spread.toFixed(3)}`);
  return facts.join("; ");
}

// The answer, its steps coloured. The server refuses answers whose written markers are not those
// that it scored, but a chat template may add markers to an answer that has none.
function answerText(text, steps, model) {
  const written = model.step_marker ? text.split(model.step_marker) : [text];
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

function tables(ranking, model) {
  const weights = model.attributes;
  const attributes = valuesTable("Attributes, each as the model gives it", ranking,
    ranking[0].score.attributes.map(({ name }, i) => [
      weights[name] ? `${name} × ${weights[name]}` : name,
      ranking.map((each) => each.score.attributes[i].value),
    ]));
  const members = valuesTable("Members of the ensemble", ranking,
    ranking[0].score.members.map((_, i) => [
      model.members[i] ?? `Member ${i + 1}`,
      ranking.map((each) => each.score.members[i]),
    ]));
  return [attributes, members].filter(Boolean);
}

// A row for each name with its values, a column for each answer.
function valuesTable(title, ranking, rows) {
  if (rows.length === 0) return null;
  return captionedTable(title, ["", ...ranking.map(nameOf)],
    rows.map(([name, values]) => [name, ...values.map((value) => cell(signed(value)))]));
}

function timings(timing, roundTrip) {
  return fillFacts(make("dl", "facts"), [
    ["tokenising", duration(timing.tokenize)],
    ["in the queue", duration(timing.queue)],
    ["computing", duration(timing.compute)],
    ["the whole call, in the server", duration(timing.total)],
    ["round trip, from this page", duration(roundTrip)],
  ]);
}
