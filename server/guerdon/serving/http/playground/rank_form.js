// The form: what is asked, and which of its fields an error is about.

import { byId } from "./dom.js";
import { placeIn, preparePrompt, promptControl, readPrompt } from "./prompt.js";
import { Rows } from "./rows.js";

const answers = new Rows(byId("answers"), byId("answer-row"), "Answer", byId("add-answer"));

export function prepareForm() {
  answers.add();
  answers.add();
  preparePrompt();
}

// Offers what the model can do.
export function suitForm(model) {
  const marker = model?.step_marker ?? "";
  byId("steps-hint").hidden = !marker;
  byId("step-marker").textContent = marker;
  offer(byId("normalize"), model?.mean !== undefined && model?.std !== undefined);
  offer(byId("sigmoid"), !model?.probability);
}

function offer(box, possible) {
  box.disabled = !possible;
  box.checked &&= possible;
}

// The body of a request to rank the answers.
export function readQuestion(model) {
  return {
    model,
    prompt: readPrompt(),
    candidates: answers.fields.map((field) => field.value),
    options: {
      normalize: byId("normalize").checked,
      activation: byId("sigmoid").checked ? "sigmoid" : "none",
      truncation: byId("truncate").checked ? "prompt_left" : "reject",
    },
  };
}

// An answer that was left empty would be scored as one.
export function emptyAnswer() {
  return answers.fields.find((field) => field.value === "");
}

// The control that a refusal is about; undefined where it is about none.
export function controlOf({ status, field }) {
  if (status === 401 || status === 403) return byId("token");
  if (status === 404 || field === "model") return byId("model");
  if (field.startsWith("candidates")) return answers.fields[placeIn(field)];
  if (field.startsWith("prompt")) return promptControl(placeIn(field));
  return undefined;
}
