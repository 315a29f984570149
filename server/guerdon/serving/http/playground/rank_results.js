// What the server found: a ranked list, tables of attributes and members, timings.

import { short } from "./cards.js";
import { answerText, detailTables, stepsHint } from "./details.js";
import { byId, counted, duration, fillFacts, make, signed } from "./dom.js";
import { barsFor, scoreHead } from "./scores.js";

// `asked` is the request that `reply` answers, and `model` the card of what it asked.
export function showResults(reply, asked, model, roundTrip) {
  byId("found").replaceChildren(
    make("p", "hint", madeBy(reply.info)),
    ...stepsHint(reply.ranking.map(({ score }) => score)),
    rankedList(reply.ranking, asked.candidates, model),
    ...detailTables(reply.ranking.map((each) => [nameOf(each), each.score]), model),
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
        answerText(candidates[each.index], each.score, model), make("p", "hint", tokens(each.score)));
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

function timings(timing, roundTrip) {
  return fillFacts(make("dl", "facts"), [
    ["tokenising", duration(timing.tokenize)],
    ["in the queue", duration(timing.queue)],
    ["computing", duration(timing.compute)],
    ["the whole call, in the server", duration(timing.total)],
    ["round trip, from this page", duration(roundTrip)],
  ]);
}
