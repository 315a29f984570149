// What the gateway found: its answers with their scores, a table of all candidates, what it all took.

import { short } from "./cards.js";
import { answerText, detailTables, stepsHint } from "./details.js";
import { byId, counted, duration, fillFacts, make, signed } from "./dom.js";
import { barsFor, scoreHead } from "./scores.js";
import { captionedTable, cell, sentence } from "./tables.js";

const TOLD = ["strategy", "best_of", "ranked", "candidates", "stopped", "scores", "gain", "tokens", "seconds", "reason"];

// Shows the answers, best first, each with its text; `report` is what the gateway says of the whole call,
// and `cards` are those of the reward models.
export function showResults({ choices, report, usage }, cards, roundTrip) {
  const models = new Set(report.scores.filter((each) => each.model).map(modelOf));
  const bar = barsByModel(report.scores);
  // A revision that was promoted meanwhile has no card here.
  const cardOf = (each) => cards.find(({ name, revision }) => name === each.model && revision === each.revision);
  const candidates = bestFirst(choices, report.scores);
  const item = (each) => candidateItem(each, bar, models.size > 1, cardOf(each));
  byId("found").replaceChildren(
    make("p", "hint", [report.strategy, ...models].join(", ")),
    ...stepsHint(choices),
    make("ol", "ranking", ...choices.map(item)),
    candidatesTable(candidates, models.size > 1),
    ...tablesByModel(candidates, models.size > 1, cardOf),
    make("h3", "", "What it took"),
    fillFacts(make("dl", "facts"), facts(report, usage, roundTrip)),
  );
}

// The outcome in one sentence, for the live region.
export function inShort({ choices: [best], report }) {
  const drawn = counted(report.candidates, "candidate");
  if (!report.ranked) return `${drawn}, not ranked: ${report.reason}.`;
  const scored = report.scores.filter((each) => each.score !== null).length;
  return `${drawn}, ${scored} scored. Chosen: ${nameOf(best)}, ${signed(best.score)}.`;
}

const nameOf = ({ candidate }) => `Candidate ${candidate}`;

const modelOf = ({ model, revision }) => `${model}@${short(revision)}`;

// The bar of a candidate. Scores of two models have no common scale.
function barsByModel(scores) {
  const byModel = Map.groupBy(scores.filter((each) => each.score !== null), modelOf);
  const bars = new Map([...byModel].map(([model, each]) => [model, barsFor(each.map(({ score }) => score))]));
  return (candidate) => (candidate.score === null ? [] : [bars.get(modelOf(candidate))(candidate.score)]);
}

function candidateItem(each, bar, namesModel, card) {
  return make("li", "", scoreHead(nameOf(each), each.score), ...bar(each),
    answerText(each.text, each, card), make("p", "hint", facets(each, namesModel)));
}

function facets(each, namesModel) {
  const found = [counted(each.tokens, "token")];
  if (each.finish_reason === "length") found.push("cut at the most tokens");
  if (each.score === null) found.push(`not ranked (${each.reason})`);
  else if (namesModel) found.push(`by ${modelOf(each)}`);
  if (each.spread !== undefined) found.push(`spread ${each.spread.toFixed(3)}`);
  return found.join("; ");
}

// All candidates: the answers in their order, then the others that ended, by score; then those that were
// stopped while they grew, whose scores are of their beginnings; then those that have none.
function bestFirst(choices, scores) {
  const chosen = choices.map(({ candidate }) => scores.find((each) => each.candidate === candidate));
  const rank = (each) => {
    if (each.score === null) return 3;
    if (each.ended === false) return 2;
    return each.model === chosen[0].model ? 0 : 1; // scores of two models have no common scale
  };
  const others = scores.filter((each) => !chosen.includes(each));
  return [...chosen, ...others.sort((a, b) => rank(a) - rank(b) || b.score - a.score)];
}

function candidatesTable(candidates, namesModel) {
  const columns = ["Candidate", "Score", "Tokens", "Drawn", ...(namesModel ? ["By"] : [])];
  return captionedTable("All candidates, best first", columns, candidates.map((each) => [
    nameOf(each),
    each.score === null ? sentence(`none: ${each.reason}`) : cell(signed(each.score)),
    cell(each.tokens === null ? "not told" : each.tokens.toLocaleString("en")),
    cell(each.ended === false ? "stopped" : "ended"),
    ...(namesModel ? [cell(each.model ? modelOf(each) : "")] : []),
  ]));
}

// What each model says of its candidates beside their scores.
function tablesByModel(candidates, namesModel, cardOf) {
  const byModel = Map.groupBy(candidates.filter((each) => each.score !== null), modelOf);
  return [...byModel].flatMap(([model, scored]) =>
    detailTables(scored.map((each) => [nameOf(each), each]), cardOf(scored[0]), namesModel ? `, by ${model}` : ""));
}

// What a strategy notes: one value, or a list of rows such as votes.
function noted(value) {
  return Array.isArray(value) ? value.map((row) => Object.values(row).join(": ")).join("; ") : String(value);
}

function facts(report, usage, roundTrip) {
  const { seconds } = report;
  const notes = Object.entries(report).filter(([name]) => !TOLD.includes(name));
  const stopped = report.stopped ? `, ${report.stopped} of them stopped before their end` : "";
  return [
    ["gain over candidate 0", report.gain === null ? "not known" : signed(report.gain)],
    ["candidates", `${report.candidates}${stopped}`],
    ["tokens drawn", report.tokens.toLocaleString("en")],
    ["of these, in the answers", usage.completion_tokens_details.accepted_prediction_tokens.toLocaleString("en")],
    ["tokens of the prompt", usage.prompt_tokens.toLocaleString("en")],
    ...notes.map(([name, value]) => [name.replaceAll("_", " "), noted(value)]),
    ["drawing", duration(seconds.draw)],
    ["scoring, after the last was drawn", duration(seconds.score)],
    ["the whole call, in the gateway", duration(seconds.total)],
    ["round trip, from this page", duration(roundTrip)],
  ];
}
