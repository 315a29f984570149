// The form: what is asked of the gateway, and which of its fields an error is about.
//
// A field's id is its path in the request, such as `guerdon.threshold`.

import { byId, make } from "./dom.js";
import { placeIn, preparePrompt, promptControl, readPrompt } from "./prompt.js";

const OURS = "guerdon.";
const COMMON = ["strategy", "model", "timeout"]; // of the fields under `guerdon`; the others are of some strategies

const form = byId("question");
const strategy = byId(`${OURS}strategy`);
const controls = [...form.querySelectorAll(`[id^="${OURS}"]`)];
const nameOf = (control) => control.id.slice(OURS.length);

let names = new Map(); // what each name asks for
let strategies = {}; // the fields of each, with what they hold by default
let saving = []; // strategies that end the sooner, the fewer answers come back

export function prepareForm() {
  preparePrompt();
  byId("model").addEventListener("change", fillIn);
  strategy.addEventListener("change", suitToStrategy);
  byId("best_of").addEventListener("change", suitAnswers);
}

// Offers what the gateway has; the names stay as they were chosen, where they are still there.
export function listNames({ data, guerdon }) {
  const list = byId("model");
  const before = list.value;
  names = new Map(data.map((each) => [each.id, each.guerdon]));
  ({ strategies, saving } = guerdon);
  list.replaceChildren(...options(names.keys()));
  if (names.has(before)) list.value = before;
  strategy.replaceChildren(...options(Object.keys(strategies)));
  for (const id of ["model", "small_model"]) byId(OURS + id).replaceChildren(...options(guerdon.reward_models));
  fillIn();
}

const options = (values) => [...values].map((value) => make("option", "", value));

// Writes into the form what the chosen name asks for.
function fillIn() {
  const asked = names.get(byId("model").value);
  byId("best_of").value = asked.best_of;
  for (const name of COMMON) byId(OURS + name).value = asked[name] ?? "";
  suitToStrategy();
  for (const name of Object.keys(ownFields())) if (name in asked) byId(OURS + name).value = asked[name];
}

const ownFields = () => strategies[strategy.value];

function suitToStrategy() {
  const own = ownFields();
  for (const control of controls) {
    const name = nameOf(control);
    if (COMMON.includes(name)) continue;
    control.disabled = !(name in own);
    control.parentElement.hidden = control.disabled;
    if (control.tagName === "INPUT") control.value = own[name] ?? "";
    else if (own[name]) control.value = own[name];
  }
  byId("n-hint").hidden = !saving.includes(strategy.value);
  suitAnswers();
}

// All answers come back, so that all can be read, where that costs nothing.
function suitAnswers() {
  byId("n").value = saving.includes(strategy.value) ? 1 : byId("best_of").value;
}

// The first control that holds no number though it must, as the browser sees it.
export const wrongControl = () => form.querySelector("input:invalid");

// The body of a request. What the chosen name asks for stands in the form, so the bare name is asked.
export function readQuestion() {
  const prompt = readPrompt();
  const [bare] = names.keys();
  return {
    model: bare,
    messages: typeof prompt === "string" ? [{ role: "user", content: prompt }] : prompt,
    ...numbers(["best_of", "n", "temperature", "top_p", "max_tokens", "seed"].map((id) => [id, byId(id)])),
    guerdon: numbers(controls.filter((control) => !control.disabled).map((control) => [nameOf(control), control])),
    stream: true,
    stream_options: { include_usage: true },
  };
}

// What the fields hold, without those that are empty.
function numbers(fields) {
  const filled = fields.filter(([, control]) => control.value !== "");
  return Object.fromEntries(filled.map(([name, { type, value }]) => [name, type === "number" ? Number(value) : value]));
}

// The control that a refusal is about; undefined where it is about none.
export function controlOf({ status, field }) {
  if (status === 401 || status === 403) return byId("token");
  if (status === 404 || field === "model") return byId("model");
  if (field.startsWith("messages")) return promptControl(placeIn(field));
  return form.elements[field];
}
