// A list of text fields to which people add, and from which they remove.

export class Rows {
  // `noun` names one of them, as in "Answer 2"; the last of them is never removed.
  constructor(list, template, noun, addButton) {
    this.list = list;
    this.template = template;
    this.noun = noun;
    this.addButton = addButton;
    this.made = 0;
    addButton.addEventListener("click", () => this.add().focus());
  }

  // Adds one, and returns its text field.
  add(text = "") {
    const row = this.template.content.firstElementChild.cloneNode(true);
    const field = row.querySelector("textarea");
    this.made += 1;
    field.id = `${this.noun.toLowerCase()}-${this.made}`;
    field.value = text;
    row.querySelector("label").htmlFor = field.id;
    row.querySelector(".remove").addEventListener("click", () => this.remove(row));
    this.list.append(row);
    this.number();
    return field;
  }

  remove(row) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    this.number();
    (next?.querySelector("textarea") ?? this.addButton).focus();
  }

  number() {
    this.rows.forEach((row, i) => {
      const name = `${this.noun} ${i + 1}`;
      row.querySelector("label").textContent = name;
      row.querySelector("select")?.setAttribute("aria-label", `Role of ${name.toLowerCase()}`);
      const remove = row.querySelector(".remove");
      remove.setAttribute("aria-label", `Remove ${name.toLowerCase()}`);
      remove.hidden = this.rows.length === 1;
    });
  }

  get rows() {
    return [...this.list.children];
  }

  get fields() {
    return this.rows.map((row) => row.querySelector("textarea"));
  }
}
