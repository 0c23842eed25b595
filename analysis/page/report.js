"use strict";
// The page's behaviour. Text from the study only ever enters the page as text nodes (textContent).
const data = JSON.parse(document.getElementById("data").textContent);
// Stage runs refer to words and sets of parts by number (`lineage.py`).
data.runs = data.runs.map(([stage, signature, parent, cell, checkpoint, state, set, neighbours, curve, setting]) =>
  [data.words[stage], signature, parent, data.words[cell], data.words[checkpoint], data.words[state], data.sets[set],
    neighbours.map(([title, index]) => [data.words[title], index]), curve, data.words[setting]]);
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

// The first screen's further settings.
document.getElementById("show-more")?.addEventListener("click", (event) => {
  document.getElementById("more").hidden = false;
  event.target.hidden = true;
});

// Tables: the last checkpoint of each setting, and all on request; labels of the cells for the cards of a phone.
for (const button of document.querySelectorAll(".earlier-rows")) {
  const words = button.textContent;
  button.addEventListener("click", () => {
    const all = button.closest("section").classList.toggle("all");
    button.setAttribute("aria-expanded", all);
    button.textContent = all ? "Show the last checkpoint" : words;
  });
}
const narrow = matchMedia("(max-width: 40rem)");
const label_cells = () => {
  if (!narrow.matches) return;
  for (const table of document.querySelectorAll("table.results, table.text")) {
    const heads = [...(table.tHead?.rows[table.tHead.rows.length - 1]?.cells ?? [])];
    for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, index) => {
      if (cell.tagName === "TD") cell.dataset.label = heads[index]?.dataset.label ?? heads[index]?.textContent ?? "";
    });
  }
};
narrow.addEventListener("change", label_cells);
label_cells();

// Copy a table as CSV (value, low and high in columns of their own) or LaTeX.
const cells_of = (row) => [...row.cells].map((cell) => {
  const interval = cell.querySelector("small")?.textContent.trim() ?? "";
  const [, low = "", high = ""] = interval.match(/\[(\S+), (\S+)\]/) ?? [];
  const text = cell.textContent.replace(interval, "").trim();
  return { text, value: cell.dataset.v ?? (cell.classList.contains("absent") ? "" : text), low, high, interval };
});
// A text that a spreadsheet would run as a formula gets an apostrophe in front, as in the files of tables.
const defused = (text) => /^\s*[=+\-@＝＋－＠]/.test(text) && isNaN(text) ? `'${text}` : text;
const quoted = (text) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
const as_csv = (heads, rows) => {
  const ranged = heads.map((_, index) => rows.some((row) => row[index].low !== ""));
  const line = (parts) => parts.flat().map((part) => quoted(defused(String(part)))).join(",");
  return [line(heads.map((head, index) => ranged[index] ? [head, `${head} low`, `${head} high`] : [head])),
    ...rows.map((row) => line(row.map((cell, index) => ranged[index] ? [cell.value, cell.low, cell.high] : [cell.value])))].join("\n") + "\n";
};
const special = { "\\": "\\textbackslash{}", "β": "$\\beta$", "λ": "$\\lambda$", "–": "--", "−": "$-$", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" };
const escaped = (text) => text.replace(/[\\βλ–−~^]|[{}&%$#_]/g, (character) => special[character] ?? `\\${character}`);
const as_latex = (heads, rows, count) => ["\\begin{tabular}{" + "l".repeat(count) + "r".repeat(heads.length - count) + "}", "\\toprule",
  heads.map(escaped).join(" & ") + " \\\\", "\\midrule",
  ...rows.map((row) => row.map((cell) => escaped([cell.text, cell.interval].filter(Boolean).join(" "))).join(" & ") + " \\\\"),
  "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
const copied = document.getElementById("copied"), copied_text = document.getElementById("text");
const status = document.getElementById("status");
const copy = async (text, done) => {
  try {
    await navigator.clipboard.writeText(text);
    done();
  } catch {  // without the right to the clipboard, the text is shown and selected
    copied_text.value = text;
    copied.showModal();
    copied_text.select();
  }
};
for (const button of document.querySelectorAll("button.copy-command")) button.addEventListener("click", () =>
  copy(button.previousElementSibling.textContent, () => { button.textContent = "Copied"; }));
for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", () => {
  const table = button.closest("section").querySelector("table.results");
  const names = [...table.querySelectorAll("tr.names th")];
  const heads = names.map((head) => head.dataset.label ?? head.textContent.trim()), rows = [...table.tBodies[0].rows].map(cells_of);
  const count = names.filter((head) => head.dataset.label === undefined).length;
  const text = button.dataset.format === "csv" ? as_csv(heads, rows) : as_latex(heads, rows, count);
  copy(text, () => { status.textContent = button.title = `Copied ${rows.length} rows.`; });
});

// Sorting: by number if both cells have one, else by text; empty cells last; a third click restores the order.
for (const table of document.querySelectorAll("table.results")) {
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

// Lineage: from a number to its stage runs, each with its parents, configuration, neighbours, curve and files.
const dialog = document.getElementById("lineage"), chain = document.getElementById("chain");
const STAGE = 0, SIGNATURE = 1, PARENT = 2, CELL = 3, CHECKPOINT = 4, STATE = 5, PARTS = 6, NEIGHBOURS = 7, CURVE = 8, SETTING = 9;
const drawing = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const spark = (numbers, colour, width = 120, height = 22) => {
  const low = Math.min(...numbers), range = Math.max(...numbers) - low || 1;
  const points = numbers.map((number, index) =>
    `${(index * (width - 4) / Math.max(1, numbers.length - 1) + 2).toFixed(1)},${(height - 3 - (number - low) / range * (height - 6)).toFixed(1)}`);
  const svg = drawing("svg", { class: "spark", width, height, role: "img", "aria-label": `from ${numbers[0]} to ${numbers.at(-1)}` });
  svg.append(drawing("polyline", { points: points.join(" "), fill: "none", stroke: colour ?? "currentColor", "stroke-width": 1.6 }));
  return svg;
};
const flat = (value, path = "", into = {}) => {
  if (value !== null && typeof value === "object" && !Array.isArray(value))
    for (const [key, part] of Object.entries(value)) flat(part, path ? `${path}.${key}` : key, into);
  else into[path] = JSON.stringify(value);
  return into;
};
const configuration = (index) => flat(Object.fromEntries(Object.entries(data.runs[index][PARTS])
  .filter(([name]) => name !== "environment").map(([name, part]) => [name, JSON.parse(data.parts[part])])));
const differences = (index, other) => {
  const [ours, theirs] = [configuration(index), configuration(other)];
  return [...new Set([...Object.keys(ours), ...Object.keys(theirs)])].filter((key) => ours[key] !== theirs[key])
    .map((key) => `${key}: ${ours[key] ?? "–"} (there ${theirs[key] ?? "–"})`);
};
const run_name = (index) => {
  const run = data.runs[index];
  return `${run[STAGE]} ${run[CELL]}${run[STAGE] === "evaluate" ? ` of ${run[CHECKPOINT]}` : ""}`;
};
const run_link = (index, text) => {
  const link = element("a", text ?? run_name(index));
  link.href = `#run=${index}`;
  return link;
};
const file_link = (run, file) => {
  const link = element("a", file || "folder");
  link.href = encodeURI(`${data.store}/${run[STAGE]}/${run[SIGNATURE]}/${file}`);
  return link;
};
const describe = (index) => {
  const run = data.runs[index], item = element("section", "", element("h3", `${run[STAGE]} ${run[CELL]}`));
  item.append(element("p", `${run[STATE]}${run[CHECKPOINT] ? `, reads ${run[CHECKPOINT]} of its parent` : ""}`));
  if (run[CURVE].length > 1) {
    const name = data.curves[run[STAGE]];
    item.append(element("p", `${name} ${run[CURVE][0]} → ${run[CURVE].at(-1)} `, spark(run[CURVE], data.colours[run[SETTING]], 260, 40)));
  }
  const files = element("p", "", element("code", `${run[STAGE]}/${run[SIGNATURE]}/ledger.jsonl`));
  if (data.store !== null && run[STATE] === "done")
    for (const file of ["", "spec.json", "ledger.jsonl", "result.json"]) files.append(" ", file_link(run, file));
  item.append(files);
  for (const [title, other] of run[NEIGHBOURS]) {
    const found = differences(index, other);
    const list = element("details", "", element("summary", `differs from ${title} in ${found.length} keys`), run_link(other, `open ${run_name(other)}`));
    list.append(element("ul", "", ...found.map((line) => element("li", line))));
    list.open = found.length <= 4;
    item.append(list);
  }
  const config = element("details", "", element("summary", "configuration"));
  for (const [name, part] of Object.entries(run[PARTS])) config.append(element("h4", name), element("pre", data.parts[part]));
  item.append(config);
  return [item, run[PARENT]];
};
const show = (indices) => {
  chain.replaceChildren();
  const shown = new Set();
  for (const first of indices) {
    for (let index = first; index >= 0 && !shown.has(index);) {
      shown.add(index);
      const [item, parent] = describe(index);
      chain.append(item);
      index = parent;
    }
    chain.append(document.createElement("hr"));
  }
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
};
const follow = () => {
  const link = location.hash.match(/^#run=([\d,]+)$/);
  if (link) show(link[1].split(",").map(Number).filter((index) => index < data.runs.length));
};
addEventListener("hashchange", follow);
dialog.addEventListener("close", () => { if (location.hash.startsWith("#run=")) history.replaceState(null, "", location.pathname); });
for (const button of document.querySelectorAll("dialog .close")) button.addEventListener("click", () => button.closest("dialog").close());
follow();

// Every stage run, by cell; a cell's list is made when it is opened.
const find = document.getElementById("find"), list = document.getElementById("cells"), count = document.getElementById("count");
const search = () => {
  const wanted = find.value.trim().toLowerCase(), cells = new Map();
  data.runs.forEach((run, index) => {
    if (`${run_name(index)} ${run[SIGNATURE]}`.toLowerCase().includes(wanted)) cells.set(run[CELL], [...(cells.get(run[CELL]) ?? []), index]);
  });
  const total = [...cells.values()].reduce((sum, indices) => sum + indices.length, 0);
  count.textContent = `${total} stage runs of ${cells.size} cells`;
  list.replaceChildren(...[...cells].map(([cell, indices]) => {
    const details = element("details", "", element("summary", `${cell}: ${indices.length} stage runs`));
    details.addEventListener("toggle", () => {
      if (!details.open || details.childElementCount > 1) return;
      details.append(element("ul", "", ...indices.map((index) => {
        const run = data.runs[index], item = element("li", "", run_link(index), ` ${run[SIGNATURE]} ${run[STATE]} `);
        if (run[CURVE].length > 1) item.append(spark(run[CURVE], data.colours[run[SETTING]]));
        return item;
      })));
    });
    details.open = cells.size <= 2 && wanted !== "";
    return details;
  }));
};
find.addEventListener("input", search);
search();
