// The page: lists the names to ask for, samples ranked answers, shows what came of it.

import { call, events } from "./api.js";
import { Asking, clearMark } from "./asking.js";
import { byId, counted } from "./dom.js";
import { currentCards, showRewardModels } from "./sample_models.js";
import { controlOf, listNames, prepareForm, readQuestion, wrongControl } from "./sample_form.js";
import { inShort, showResults } from "./sample_results.js";

const asking = new Asking(controlOf);
let listed = false;

async function reloadNames() {
  asking.say("Asking for the models…");
  const cards = (how) => call("v1/reward_models", how).catch(() => ({ reply: { models: [] } }));
  const both = (how) => Promise.all([call("v1/models", how), cards(how)]);
  await asking.ask(both, ([{ reply }, rewards]) => {
    listNames(reply);
    showRewardModels(rewards.reply);
    listed = true;
    asking.say(`${counted(reply.data.length, "name")} to ask for.`);
  });
}

async function sample() {
  clearMark();
  byId("found").replaceChildren();
  if (!listed) return asking.refuse(byId("model"), "There is no model to ask: list the models again.");
  const wrong = wrongControl();
  if (wrong) return asking.refuse(wrong, wrong.validationMessage);
  const question = readQuestion();
  asking.say("Drawing candidates…");
  return asking.ask((how) => answerTo(question, how), ({ answer, seconds }) => {
    showResults(answer, currentCards(), seconds);
    asking.say(inShort(answer));
    byId("results-heading").scrollIntoView({ block: "nearest" });
  });
}

// The answer that a stream makes up, and the seconds until its end; its comments are said as they come.
async function answerTo(question, how) {
  const began = performance.now();
  const answer = { choices: [] };
  for await (const chunk of events("v1/chat/completions", { ...how, body: question })) {
    for (const { index, delta, finish_reason, guerdon } of chunk.choices) {
      const choice = (answer.choices[index] ??= { text: "" });
      choice.text += delta.content ?? "";
      if (finish_reason) Object.assign(choice, { finish_reason }, guerdon);
    }
    if (chunk.guerdon) Object.assign(answer, { report: chunk.guerdon, usage: chunk.usage });
  }
  return { answer, seconds: (performance.now() - began) / 1000 };
}

byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  sample();
});
byId("token").addEventListener("change", reloadNames);
byId("reload").addEventListener("click", reloadNames);
prepareForm();
reloadNames();
