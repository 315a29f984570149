// The form: what is asked, and which of its fields an error is about.

import { byId, make } from "./dom.js";
import { Rows } from "./rows.js";

const form = byId("question");
const answers = new Rows(byId("answers"), byId("answer-row"), "Answer", byId("add-answer"));
const turns = new Rows(byId("turns"), byId("turn-row"), "Turn", byId("add-turn"));

const asTurns = () => form.elements.form.value === "turns";

export function prepareForm() {
  answers.add();
  answers.add();
  turns.add();
  byId("prompt-fields").addEventListener("change", () => {
    byId("as-text").hidden = asTurns();
    byId("as-turns").hidden = !asTurns();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    form.requestSubmit();
  });
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
    prompt: asTurns()
      ? turns.rows.map((row) => ({
          role: row.querySelector("select").value,
          content: row.querySelector("textarea").value,
        }))
      : byId("prompt").value,
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
  const place = Number(/\[(\d+)\]/.exec(field)?.[1] ?? 0);
  if (field.startsWith("candidates")) return answers.fields[place];
  if (field.startsWith("prompt")) return asTurns() ? turns.fields[place] : byId("prompt");
  return undefined;
}

// Writes an error below a control, one at a time, and takes the reader there.
export function markControl(control, sentence) {
  const note = make("p", "fault", sentence);
  note.id = "fault";
  control.after(note);
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-describedby", `${note.id} ${control.getAttribute("aria-describedby") ?? ""}`.trim());
  control.focus();
}

export function clearMark() {
  byId("fault")?.remove();
  const control = document.querySelector("[aria-invalid]");
  if (!control) return;
  control.removeAttribute("aria-invalid");
  control.setAttribute("aria-describedby", control.getAttribute("aria-describedby").replace(/^fault ?/, ""));
}
