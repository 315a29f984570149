// What the gateway found: its answers with their scores, the other candidates, what it all took.

import { byId, counted, duration, fillFacts, make, signed } from "./dom.js";
import { barsFor, scoreHead } from "./scores.js";

const TOLD = ["strategy", "best_of", "ranked", "candidates", "stopped", "scores", "gain", "tokens", "seconds", "reason"];

// Shows the answers, best first, each with its text; `report` is what the gateway says of the whole call.
export function showResults({ choices, report, usage }, roundTrip) {
  const models = new Set(report.scores.filter((each) => each.model).map(modelOf));
  const bar = barsByModel(report.scores);
  const item = (each) => candidateItem(each, bar, models.size > 1);
  const read = new Set(choices.map((each) => each.candidate));
  const others = report.scores.filter((each) => !read.has(each.candidate));
  const answers = make("ol", "ranking", ...choices.map(item));
  byId("found").replaceChildren(
    make("p", "hint", [report.strategy, ...models].join(", ")),
    answers,
    ...(others.length ? [make("h3", "", "Candidates that were not chosen"),
      make("ul", "ranking", ...others.map(item))] : []),
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

const modelOf = ({ model, revision }) => `${model}@${revision.slice(0, 12)}`;

// The bar of a candidate. Scores of two models have no common scale.
function barsByModel(scores) {
  const byModel = Map.groupBy(scores.filter((each) => each.score !== null), modelOf);
  const bars = new Map([...byModel].map(([model, each]) => [model, barsFor(each.map(({ score }) => score))]));
  return (candidate) => (candidate.score === null ? [] : [bars.get(modelOf(candidate))(candidate.score)]);
}

function candidateItem(each, bar, namesModel) {
  const text = each.text === undefined ? [] : [make("p", "text", each.text)];
  return make("li", "", scoreHead(nameOf(each), each.score), ...bar(each), ...text, make("p", "hint", facets(each, namesModel)));
}

function facets(each, namesModel) {
  const found = [each.tokens === null ? "tokens not told" : counted(each.tokens, "token")];
  if (each.finish_reason === "length") found.push("cut at the most tokens");
  if (each.ended === false) found.push("stopped before its end");
  if (each.score === null) found.push(`not ranked (${each.reason})`);
  else if (namesModel) found.push(`by ${modelOf(each)}`);
  return found.join("; ");
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
