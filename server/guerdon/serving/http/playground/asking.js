// The call that runs, and what is said of it: progress, an outcome, an error at its field.

import { Refusal } from "./api.js";
import { byId, make } from "./dom.js";

export class Asking {
  // `controlOf` finds the control that a refusal is about; undefined where it is about none.
  constructor(controlOf) {
    this.controlOf = controlOf;
    this.running = null; // the AbortController of the last call
    byId("cancel").addEventListener("click", () => this.running?.abort());
  }

  say(sentence) {
    byId("status").textContent = sentence;
    byId("error").textContent = "";
  }

  // Makes a call in place of the one that runs. `make` gets its token, its signal, and what tells how
  // far it is; `show` gets what it gave.
  async ask(make, show) {
    this.running?.abort();
    const mine = new AbortController();
    this.running = mine;
    byId("found").setAttribute("aria-busy", "true");
    byId("cancel").hidden = false;
    clearMark();
    try {
      const tell = (sentence) => this.running === mine && this.say(sentence);
      const given = await make({ token: byId("token").value, signal: mine.signal, tell });
      if (this.running === mine) show(given);
    } catch (error) {
      if (this.running !== mine) return;
      if (mine.signal.aborted) this.say("Cancelled.");
      else this.showError(error);
    } finally {
      if (this.running === mine) {
        this.running = null;
        byId("found").setAttribute("aria-busy", "false");
        byId("cancel").hidden = true;
      }
    }
  }

  // Says at a control why nothing is asked.
  refuse(control, sentence) {
    this.say("");
    byId("error").textContent = sentence;
    markControl(control, sentence);
  }

  showError(error) {
    const answered = error instanceof Refusal;
    const sentence = answered ? error.message : `The server can't be asked: ${error.message}`;
    this.say("");
    byId("error").textContent = sentence;
    const control = answered ? this.controlOf(error) : undefined;
    if (control) markControl(control, sentence.replace(`${error.field}: `, ""));
  }
}

// Writes an error below a control, one at a time, and takes the reader there.
function markControl(control, sentence) {
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
