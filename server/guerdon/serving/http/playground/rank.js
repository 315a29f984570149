// The page: lists the models, asks for a ranking, shows what came of it.

import { call } from "./api.js";
import { Asking, clearMark } from "./asking.js";
import { byId, counted } from "./dom.js";
import { controlOf, emptyAnswer, prepareForm, readQuestion, suitForm } from "./rank_form.js";
import { chosenModel, listModels, showCard } from "./rank_models.js";
import { inShort, showResults } from "./rank_results.js";

const asking = new Asking(controlOf);

async function reloadModels() {
  asking.say("Asking for the models…");
  await asking.ask((how) => call("v1/models", how), ({ reply: { models } }) => {
    listModels(models);
    asking.say(models.length ? `${counted(models.length, "model")} loaded.` : "No model is loaded.");
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
  if (!model) return asking.refuse(byId("model"), "There is no model to ask: list the models again.");
  const empty = emptyAnswer();
  if (empty) return asking.refuse(empty, "This answer is empty: write one, or remove it.");
  const question = readQuestion(byId("model").value);
  asking.say(`Scoring ${counted(question.candidates.length, "answer")}…`);
  return asking.ask((how) => call("v1/rank", { ...how, body: question }), ({ reply, seconds }) => {
    showResults(reply, question, model, seconds);
    asking.say(inShort(reply.ranking));
    byId("results-heading").scrollIntoView({ block: "nearest" });
  });
}

byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  rank();
});
byId("model").addEventListener("change", suitToModel);
byId("token").addEventListener("change", reloadModels);
byId("reload").addEventListener("click", reloadModels);
prepareForm();
reloadModels();
