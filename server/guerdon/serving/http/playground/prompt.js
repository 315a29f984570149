// The prompt: one text, or turns of a conversation.

import { byId } from "./dom.js";
import { Rows } from "./rows.js";

const form = byId("question");
const turns = new Rows(byId("turns"), byId("turn-row"), "Turn", byId("add-turn"));

const asTurns = () => form.elements.form.value === "turns";

export function preparePrompt() {
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

// A text, or a list of messages.
export function readPrompt() {
  if (!asTurns()) return byId("prompt").value;
  return turns.rows.map((row) => ({
    role: row.querySelector("select").value,
    content: row.querySelector("textarea").value,
  }));
}

// The field of a turn, or of the text.
export const promptControl = (turn) => (asTurns() ? turns.fields[turn] : byId("prompt"));

// The number in a field's path, as in `messages[2].content`; 0 where there is none.
export const placeIn = (path) => Number(/\[(\d+)\]/.exec(path)?.[1] ?? 0);
