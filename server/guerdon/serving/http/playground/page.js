// The page: lists the models, asks for a ranking, shows what came of it.

import { Refusal, call } from "./api.js";
import { byId, counted } from "./dom.js";
import { chosenModel, listModels, showCard } from "./models.js";
import { clearMark, controlOf, emptyAnswer, markControl, prepareForm, readQuestion, suitForm } from "./question.js";
import { inShort, showResults } from "./results.js";

let running = null; // the AbortController of the last call

function say(sentence) {
  byId("status").textContent = sentence;
  byId("error").textContent = "";
}

function showError(error) {
  const answered = error instanceof Refusal;
  const sentence = answered ? error.message : `The server can't be asked: ${error.message}`;
  say("");
  byId("error").textContent = sentence;
  const control = answered ? controlOf(error) : undefined;
  if (control) markControl(control, sentence.replace(`${error.field}: `, ""));
}

// Makes a call in place of the one that runs; `show` gets its reply and its seconds.
async function ask(path, body, show) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  byId("found").setAttribute("aria-busy", "true");
  byId("cancel").hidden = false;
  clearMark();
  try {
    const { reply, seconds } = await call(path, { token: byId("token").value, body, signal: mine.signal });
    if (running === mine) show(reply, seconds);
  } catch (error) {
    if (running !== mine) return;
    if (mine.signal.aborted) say("Cancelled.");
    else showError(error);
  } finally {
    if (running === mine) {
      running = null;
      byId("found").setAttribute("aria-busy", "false");
      byId("cancel").hidden = true;
    }
  }
}

async function reloadModels() {
  say("Asking for the models…");
  await ask("v1/models", undefined, ({ models }) => {
    listModels(models);
    say(models.length ? `${counted(models.length, "model")} loaded.` : "No model is loaded.");
  });
  suitToModel();
}

function suitToModel() {
  showCard();
  suitForm(chosenModel());
}

async function rank() {
  const model = chosenModel();
  clearMark();
  byId("found").replaceChildren();
  if (!model) return refuse(byId("model"), "There is no model to ask: list the models again.");
  const empty = emptyAnswer();
  if (empty) return refuse(empty, "This answer is empty: write one, or remove it.");
  const question = readQuestion(byId("model").value);
  say(`Scoring ${counted(question.candidates.length, "answer")}…`);
  return ask("v1/rank", question, (reply, seconds) => {
    showResults(reply, question, model, seconds);
    say(inShort(reply.ranking));
    byId("results-heading").scrollIntoView({ block: "nearest" });
  });
}

function refuse(control, sentence) {
  say("");
  byId("error").textContent = sentence;
  markControl(control, sentence);
}

byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  rank();
});
byId("model").addEventListener("change", suitToModel);
byId("token").addEventListener("change", reloadModels);
byId("reload").addEventListener("click", reloadModels);
byId("cancel").addEventListener("click", () => running?.abort());
prepareForm();
reloadModels();
