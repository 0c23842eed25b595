"use strict";
// The page's behaviour. Text from the study only ever enters the page as text nodes (textContent).
const data = JSON.parse(document.getElementById("data").textContent);
const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

// Light and dark: follows the system until the button is used.
const root = document.documentElement, theme = document.getElementById("theme");
const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
label();

// Figures: the values of a mark are shown under the pointer.
const tip = document.getElementById("tip");
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest?.("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip.replaceAll("; ", "\n");
  const { offsetWidth: width, offsetHeight: height } = tip;
  tip.style.left = `${Math.max(0, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${event.clientY + height + 16 > innerHeight ? event.clientY - height - 8 : event.clientY + 12}px`;
});

// Sorting: by number if both cells have one, else by text; empty cells last; a third click restores the order.
const status = document.getElementById("status");
for (const table of document.querySelectorAll("section.table table")) {
  const body = table.tBodies[0], original = [...body.rows];
  const heads = [...table.querySelectorAll("tr.names th")];
  heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
    const next = { ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")] ?? "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    if (next !== "none") head.setAttribute("aria-sort", next);
    const key = (row) => row.cells[index].dataset.v ?? "";
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? (x < y ? -1 : x > y ? 1 : 0) : x - y;
      return next === "descending" ? -order : order;
    };
    body.append(...(next === "none" ? original : [...original].sort(compare)));
    status.textContent = next === "none" ? "Order restored." : `Sorted by ${head.textContent}, ${next}.`;
  }));
}

// Filters: tables by model, rows and tables by objective, columns by benchmark.
const chosen = { model: "", objective: "", benchmark: "" };
const applies = (wanted, value) => wanted === "" || value === "" || wanted === value;  // "" is all, or about none
const filter = () => {
  let shown = 0;
  for (const section of document.querySelectorAll("section.table")) {
    const objectives = JSON.parse(section.dataset.objectives);
    section.hidden = !applies(chosen.model, section.dataset.model) ||
      (chosen.objective !== "" && objectives.length > 0 && !objectives.includes(chosen.objective));
    shown += !section.hidden;
    if (section.hidden) continue;
    const heads = [...section.querySelectorAll("tr.names th")];
    const visible = heads.map((head) => applies(chosen.benchmark, head.dataset.benchmark ?? ""));
    heads.forEach((head, index) => { head.hidden = !visible[index]; });
    for (const row of section.querySelector("tbody").rows) {
      const isControl = "control" in row.dataset;  // a control's row belongs to the table's one setting
      row.hidden = objectives.length > 0 && !isControl && !applies(chosen.objective, row.dataset.objective);
      [...row.cells].forEach((cell, index) => { cell.hidden = !visible[index]; });
    }
    // A group's heading spans those of its columns that are visible.
    let first = 0;
    for (const cell of section.querySelector("tr.groups")?.cells ?? []) {
      const width = Number(cell.dataset.width ??= cell.colSpan);
      const count = visible.slice(first, first + width).filter(Boolean).length;
      first += width;
      cell.hidden = count === 0;
      if (count) cell.colSpan = count;
    }
  }
  status.textContent = `${shown} tables shown.`;
};
for (const select of document.querySelectorAll("[data-filter]"))
  select.addEventListener("change", () => { chosen[select.dataset.filter] = select.value; filter(); });

// Lineage: from a number to its stage runs, each with its parents, configuration and ledger.
const dialog = document.getElementById("lineage"), chain = document.getElementById("chain");
const describe = (index) => {
  const [stage, signature, parent, cell, checkpoint, state, parts] = data.runs[index];
  const item = element("section", "", element("h3", `${stage} ${cell}`));
  item.append(element("p", `${state}${checkpoint ? `, reads ${checkpoint} of its parent` : ""}`));
  item.append(element("p", "", element("code", `${stage}/${signature}/ledger.jsonl`)));
  const config = element("details", "", element("summary", "configuration"));
  for (const [name, part] of Object.entries(parts)) config.append(element("h4", name), element("pre", data.parts[part]));
  item.append(config);
  return [item, parent];
};
const show = (indices) => {
  chain.replaceChildren();
  for (const first of indices) {
    for (let index = first; index >= 0;) {
      const [item, parent] = describe(index);
      chain.append(item);
      index = parent;
    }
    chain.append(document.createElement("hr"));
  }
  dialog.showModal();
};
const follow = () => {
  const link = location.hash.match(/^#run=([\d,]+)$/);
  if (link) show(link[1].split(",").map(Number).filter((index) => index < data.runs.length));
};
addEventListener("hashchange", follow);
dialog.addEventListener("close", () => { if (location.hash.startsWith("#run=")) history.replaceState(null, "", location.pathname); });
document.getElementById("close").addEventListener("click", () => dialog.close());
follow();

// Search for a stage run.
const find = document.getElementById("find"), found = document.getElementById("found");
const search = () => {
  const wanted = find.value.trim().toLowerCase();
  found.replaceChildren();
  data.runs.forEach(([stage, signature, , cell, checkpoint], index) => {
    const name = `${stage} ${cell}${stage === "evaluate" ? ` of ${checkpoint}` : ""} ${signature}`;
    if (found.childElementCount < 50 && name.toLowerCase().includes(wanted)) {
      const link = element("a", name);
      link.href = `#run=${index}`;
      found.append(element("li", "", link));
    }
  });
};
find.addEventListener("input", search);
search();
