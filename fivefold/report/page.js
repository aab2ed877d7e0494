"use strict";
// The table: drawn from the JSON in the page, a screenful of lines at a time, sorted, its columns chosen, rows opened.
// What the reader chose stands in the address (#sort=frechet&columns=...), so that a reload or a link keeps it.
const fivefold = (() => {
  const STEP = 100, MOST_COLUMNS = 12;
  const [TEXT, VALUE, ERROR, KIND, MARK, HINT] = [0, 1, 2, 3, 4, 5];
  const byId = (id) => document.getElementById(id);
  const table = byId("results"), [head, body, foot] = [table.tHead, table.tBodies[0], table.tFoot];
  const opened = new Map();  // by label: the row of details under its line
  const state = {sort: "", reversed: false, columns: null, find: "", most: STEP};
  let data, shown = [], detail = async () => null;

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== "") element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  function marker(family) {
    const holder = make("template");
    holder.innerHTML = data.families[family].marker;
    return holder.content.firstElementChild;
  }

  // --- what is shown -----------------------------------------------------------------------------

  function compare(a, b, better) {
    if (typeof better === "number") return Math.abs(a - better) - Math.abs(b - better);
    return better === "high" ? b - a : a - b;
  }

  // The best on top; lines without a value stay at the end either way.
  function sorted(lines) {
    if (!state.sort) return lines;
    const turn = state.reversed ? -1 : 1;
    if (state.sort === "system") return [...lines].sort((a, b) => turn * a.label.localeCompare(b.label));
    const at = data.columns.findIndex((column) => column.key === state.sort);
    if (at < 0) return lines;
    const value = (line) => line.cells ? line.cells[at][VALUE] ?? null : null;
    return [...lines].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return turn * compare(x, y, data.columns[at].better);
    });
  }

  function lines() {
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (line) => `${line.label} ${line.title} ${data.families[line.family].title} ${line.status}`.toLowerCase();
    return sorted(words.length ? data.lines.filter((line) => words.every((word) => text(line).includes(word))) : data.lines);
  }

  // The columns chosen; else as many of the first in rank as the page is wide enough for.
  function draw() {
    const ranked = data.columns.map((column, at) => ({...column, at})).sort((a, b) => a.rank - b.rank);
    const order = (columns) => columns.sort((a, b) => a.at - b.at);
    if (state.columns) {
      shown = order(ranked.filter((column) => state.columns.includes(column.key)));
      drawAll();
    } else {
      for (let n = Math.min(MOST_COLUMNS, ranked.length); n >= 0; n--) {
        shown = order(ranked.slice(0, n));
        drawAll();
        if (table.parentElement.scrollWidth <= table.parentElement.clientWidth) break;
      }
    }
    drawMenu();
  }

  function drawAll() {
    drawHead();
    drawBody();
    const floors = data.floors ? [make("tr", {}, make("th", {scope: "row"}, marker("real"), "floor"),
      ...shown.map((column) => make("td", {class: column.first}, data.floors[column.at])))] : [];
    foot.replaceChildren(...floors);
  }

  function drawHead() {
    const groups = [];
    for (const column of shown) {
      column.first = groups.length && groups.at(-1).title === column.group ? "" : "first";
      if (column.first) groups.push({title: column.group, count: 0});
      groups.at(-1).count += 1;
    }
    const sorter = (key, title, text, better) => {
      const button = make("button", {type: "button", title: text}, title);
      button.addEventListener("click", () => sortBy(key));
      const way = (better === "high") !== state.reversed ? "descending" : "ascending";
      return make("th", {scope: "col", "data-key": key, "aria-sort": state.sort === key ? way : "none"}, button);
    };
    const titles = shown.map((column) => {
      const cell = sorter(column.key, column.title, column.text, column.better);
      cell.className = column.first;
      return cell;
    });
    keepFocus(() => head.replaceChildren(
      make("tr", {class: "groups"}, make("td"),
        ...groups.map((group) => make("th", {colspan: group.count, scope: "colgroup"}, group.title))),
      make("tr", {}, sorter("system", "System", "", "low"), ...titles)));
  }

  function drawBody() {
    const every = lines();
    const rows = [];
    for (const line of every.slice(0, state.most)) {
      rows.push(drawLine(line));
      const row = opened.get(line.label);
      if (row) {
        row.firstElementChild.colSpan = shown.length + 1;
        rows.push(row);
      }
    }
    keepFocus(() => body.replaceChildren(...rows));
    byId("more").hidden = every.length <= state.most;
    byId("more").textContent = `Show ${Math.min(STEP, every.length - state.most)} more of ${every.length - state.most}`;
    table.classList.toggle("chosen", state.columns !== null);
  }

  function drawLine(line) {
    const open = make("button", {type: "button", class: "open", "aria-expanded": opened.has(line.label),
      "data-open": line.label}, marker(line.family), make("span", {}, line.label), line.note ? "*" : "");
    open.addEventListener("click", () => toggle(line));
    const name = make("th", {scope: "row", title: [line.title, line.note].filter(Boolean).join(": ")}, open);
    if (!line.cells) {
      const reason = make("td", {colspan: Math.max(shown.length, 1), class: "reason first"}, `${line.status}: ${line.reason}`);
      return make("tr", {class: "failed"}, name, reason);
    }
    return make("tr", {}, name, ...shown.map((column) => {
      const cell = line.cells[column.at];
      const words = [cell[MARK], column.first].filter(Boolean).join(" ");
      return make("td", {"data-column": column.key, class: words, title: cell[HINT]}, cell[TEXT]);
    }));
  }

  // Drawing anew takes the focus from what is replaced: give it to what stands in its place.
  function keepFocus(change) {
    const active = document.activeElement;
    const place = active && table.contains(active) ? active.dataset.open ?? active.closest("th")?.dataset.key : undefined;
    const attribute = active && active.dataset.open === undefined ? "data-key" : "data-open";
    change();
    if (place === undefined || document.activeElement === active && active.isConnected) return;
    const found = table.querySelector(`[${attribute}="${CSS.escape(place)}"]`);
    (found?.querySelector("button") ?? found)?.focus({preventScroll: true});
  }

  function drawMenu() {
    const box = document.querySelector("#columns .choices");
    const keys = new Set(shown.map((column) => column.key));
    const focused = box.contains(document.activeElement) ? document.activeElement.value : null;
    const groups = new Map();
    for (const column of data.columns) groups.set(column.group, [...groups.get(column.group) ?? [], column]);
    const sets = [...groups].map(([title, columns]) => make("fieldset", {}, make("legend", {}, title), ...columns.map((column) => {
      const choice = make("input", {type: "checkbox", value: column.key});
      choice.checked = keys.has(column.key);
      choice.addEventListener("change", () => choose(column.key, choice.checked));
      return make("label", {title: column.text}, choice, column.title);
    })));
    const usual = make("button", {type: "button", value: "usual"}, "As many as fit");
    usual.disabled = state.columns === null;
    usual.addEventListener("click", () => { state.columns = null; changed(); });
    box.replaceChildren(...sets, usual);
    if (focused) [...box.querySelectorAll("input, button")].find((one) => one.value === focused)?.focus();
  }

  // --- what the reader does ----------------------------------------------------------------------

  function sortBy(key) {
    state.reversed = state.sort === key && !state.reversed;
    state.sort = key;
    changed();
    const title = key === "system" ? "System" : data.columns.find((column) => column.key === key).title;
    say(`Sorted by ${title}, ${state.reversed ? "the best last" : key === "system" ? "A to Z" : "the best first"}.`);
  }

  function choose(key, wanted) {
    const keys = new Set(shown.map((column) => column.key));
    if (wanted) keys.add(key); else keys.delete(key);
    state.columns = [...keys];
    changed();
  }

  async function toggle(line) {
    if (opened.delete(line.label)) return drawBody();
    opened.set(line.label, make("tr", {class: "detail"}, make("td", {}, "…")));
    drawBody();
    await fill(line);
  }

  // What a line opens into: all its figures, then what the page (or the server) has of it.
  async function fill(line) {
    const cell = opened.get(line.label)?.firstElementChild;
    if (!cell) return;
    const figures = (line.cells ?? []).map((cell, at) => [data.columns[at], cell]).filter(([, cell]) => cell[TEXT] !== "–");
    const list = make("dl", {class: "figures"}, ...figures.map(([column, cell]) =>
      make("div", {title: cell[HINT]}, make("dt", {}, column.title), make("dd", {class: cell[MARK]}, cell[TEXT]))));
    const words = `${line.title} (${data.families[line.family].title})`;
    const found = await detail(line.label) ?? make("p", {class: "note"}, "The curves and samples of this row are not in the file.");
    cell.replaceChildren(make("h3", {}, words), list, found);
  }

  // In a file: what stands in it, with the samples of the gallery.
  detail = async (label) => {
    const template = document.querySelector(`template[data-label="${CSS.escape(label)}"]`);
    if (!template) return null;
    const content = template.content.cloneNode(true);
    const figure = document.querySelector(`[data-part="pictures"] figure[data-label="${CSS.escape(label)}"]`);
    content.querySelector(".opened")?.prepend(...figure ? [figure.cloneNode(true)] : []);
    return content;
  };

  function changed() {
    draw();
    const kept = new URLSearchParams();
    if (state.sort) kept.set("sort", state.sort);
    if (state.reversed) kept.set("reversed", "1");
    if (state.columns) kept.set("columns", state.columns.join(","));
    if (state.find) kept.set("find", state.find);
    history.replaceState(null, "", `#${kept}`);
  }

  function say(text) {
    byId("said").textContent = text;
  }

  // --- files -------------------------------------------------------------------------------------

  // As `fivefold report --table csv`: of every column the value, and where there are such its error and kind.
  function csv() {
    const fields = [["system", (line) => line.label], ["family", (line) => line.family], ["status", (line) => line.status]];
    data.columns.forEach((column, at) => {
      for (const [place, title] of [[VALUE, ""], [ERROR, ", error"], [KIND, ", kind"]]) {
        const value = (line) => line.cells?.[at][place] ?? "";
        if (place === VALUE || data.lines.some((line) => value(line) !== "")) fields.push([column.title + title, value]);
      }
    });
    const quoted = (value) => /[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value;
    const rows = [fields.map(([title]) => title), ...lines().map((line) => fields.map(([, value]) => value(line)))];
    return rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  }

  // The columns that are shown, best in bold and ties in italics.
  function markdown() {
    const escaped = (text) => text.replaceAll("|", "\\|").split(/\s+/).join(" ");
    const sign = {best: "**", tie: "*"};
    const cell = (found) => `${sign[found[MARK]] ?? ""}${found[TEXT]}${sign[found[MARK]] ?? ""}`;
    const rows = lines().map((line) => [line.label, ...line.cells ? shown.map((column) => cell(line.cells[column.at]))
      : [`${line.status}: ${line.reason}`, ...shown.slice(1).map(() => "")]]);
    if (data.floors) rows.push(["floor: real data", ...shown.map((column) => data.floors[column.at])]);
    const heads = [["System", ...shown.map((column) => column.title)], ["---", ...shown.map(() => "---:")]];
    return [...heads, ...rows].map((row) => `| ${row.map(escaped).join(" | ")} |\n`).join("");
  }

  function save(kind) {
    const [text, type] = kind === "csv" ? [csv(), "text/csv"] : [markdown(), "text/markdown"];
    const link = make("a", {href: URL.createObjectURL(new Blob([text], {type})), download: `table.${kind}`});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    say(`Saved table.${kind}.`);
  }

  // --- the start, and what is new ----------------------------------------------------------------

  // Takes the table of this page, or of a newer one.
  function take(text) {
    data = JSON.parse(text);
    document.querySelector(".find").hidden = data.lines.length <= 20;
    draw();
    for (const line of data.lines) if (opened.has(line.label)) fill(line);
  }

  for (const button of document.querySelectorAll("[data-export]")) {
    button.addEventListener("click", () => save(button.dataset.export));
  }
  byId("more").addEventListener("click", () => { state.most += STEP; drawBody(); });
  byId("find").addEventListener("input", (event) => { state.find = event.target.value; state.most = STEP; changed(); });
  byId("columns").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    byId("columns").open = false;
    byId("columns").firstElementChild.focus();
  });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });

  const kept = new URLSearchParams(location.hash.slice(1));
  state.sort = kept.get("sort") ?? "";
  state.reversed = kept.has("reversed");
  state.columns = kept.get("columns")?.split(",") ?? null;
  byId("find").value = state.find = kept.get("find") ?? "";
  take(byId("data").textContent);
  return {take, say, make, fromServer: (ask) => { detail = ask; }};
})();
