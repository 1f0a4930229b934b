"use strict";
/* Charts, sortable tables and the circuit explorer; plain scripts over the data that stands in the page. */

const data = id => JSON.parse(document.getElementById(id).textContent);

// ------------------------------------------------------------------ charts
for (const [name, figure] of Object.entries(data("charts"))) {
  const place = document.getElementById("chart-" + name);
  if (!place) continue;
  const inked = () => ({ "font.color": getComputedStyle(document.body).color });
  figure.layout.font.color = inked()["font.color"];
  Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Plotly.relayout(place, inked()));
}

// ------------------------------------------------------------------ tables
const UNITS = { G: 1e9, T: 1e12, P: 1e15, E: 1e18 };
function sortValue(text) {
  const number = parseFloat(text.trim().replace(/,/g, "").replace("\u2212", "-")) * (UNITS[text.match(/([GTPE])FLOP/)?.[1]] ?? 1);
  return text.trim() === "–" || text.trim() === "" ? Infinity : Number.isNaN(number) ? text.trim() : number;
}
function compare(a, b, down) {  // what is not there comes last in either direction
  if (a === Infinity || b === Infinity) return a === b ? 0 : a === Infinity ? 1 : -1;
  const sign = down ? -1 : 1;
  if (typeof a !== typeof b) return sign * (typeof a === "number" ? -1 : 1);
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
}
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach(one => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      const value = row => sortValue(row.cells[column].textContent);
      rows.sort((x, y) => compare(value(x), value(y), down));
      table.tBodies[0].append(...rows);
    });
  });
}

// ------------------------------------------------------------------ circuit explorer
const NONE = { uint8: 255, uint16: 65535 };
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), one => one.charCodeAt(0));
  const values = packed.type === "uint16" ? new Uint16Array(bytes.buffer) : bytes;
  const shape = packed.shape;
  return {
    ...packed,
    shape,
    made: step => packed.steps[packed.of[step]],  // the step at which it was made that a checkpoint shows
    at(...index) {
      let place = 0;
      index[0] = packed.of[index[0]];
      for (let axis = 0; axis < shape.length; axis++) {
        if (!(index[axis] >= 0 && index[axis] < shape[axis])) return null;
        place = place * shape[axis] + index[axis];
      }
      return values[place] === NONE[packed.type] ? null : values[place];
    },
  };
}
const CIVIDIS = [[0, 32, 77], [65, 77, 107], [124, 123, 120], [188, 175, 111], [255, 234, 70]];
function colour(share) {
  const place = Math.max(0, Math.min(1, share)) * (CIVIDIS.length - 1), low = Math.min(CIVIDIS.length - 2, Math.floor(place));
  const mixed = CIVIDIS[low].map((one, i) => Math.round(one + (CIVIDIS[low + 1][i] - one) * (place - low)));
  return { background: `rgb(${mixed})`, ink: mixed[0] * .3 + mixed[1] * .6 + mixed[2] * .1 > 120 ? "#000" : "#fff" };
}
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

class Explorer {
  constructor(place, told) {
    this.told = told;
    this.arrays = Object.fromEntries(Object.entries(told.arrays).map(([name, one]) => [name, unpack(one)]));
    this.chosen = [told.states.length - 1, told.positions.length - 1];
    const id = "explorer-" + told.split;
    this.slider = make("input", { type: "range", min: 0, max: told.steps.length - 1, value: told.steps.length - 1, step: 1, id: id + "-step" });
    this.shown = make("output", {});
    this.query = make("select", { id: id + "-query" }, make("option", { value: -1, textContent: "all queries (means)" }),
      ...told.queries.slice(0, told.count).map((tokens, i) => make("option", { value: i, textContent: `${i + 1}: ${tokens.map(t => this.token(t)).join(" ")}` })));
    this.measure = make("select", { id: id + "-measure" },
      ...told.measures.map((one, i) => make("option", { value: i, textContent: one.title })));
    this.table = make("table", { className: "grid" });
    this.side = make("div", { className: "heads" });
    this.note = make("p", { className: "legend" });
    place.append(
      make("div", { className: "controls" },
        make("label", { htmlFor: this.slider.id }, "checkpoint ", this.slider, this.shown),
        make("label", { htmlFor: this.query.id }, "query ", this.query),
        make("label", { htmlFor: this.measure.id }, "colour ", this.measure)),
      make("div", { className: "panes" }, make("div", { className: "scroll" }, this.table), this.side), this.note);
    for (const control of [this.slider, this.query, this.measure])
      for (const event of ["input", "change"]) control.addEventListener(event, () => this.draw());
    this.build();
    this.draw();
  }
  token(id) { return this.told.tokens[id] ?? String(id); }
  build() {
    const { states, positions } = this.told;
    this.table.append(make("tr", {}, make("th", {}), ...positions.map(one => make("th", { scope: "col", textContent: one }))));
    this.cells = states.map(() => []);
    for (let s = states.length - 1; s >= 0; s--) {
      const row = make("tr", {}, make("th", { scope: "row", textContent: states[s] }));
      positions.forEach((_, p) => {
        const cell = make("td", { className: "cell", tabIndex: 0 });
        for (const event of ["mouseenter", "focus"]) cell.addEventListener(event, () => { this.chosen = [s, p]; this.attention(); });
        this.cells[s].push(cell);
        row.append(cell);
      });
      this.table.append(row);
    }
  }
  place(named, state, position) {  // analyses need not look at the same states and positions, nor in the same order
    return [named.rows.indexOf(this.told.states[state]), named.columns.indexOf(this.told.positions[position])];
  }
  mean(measure, step, state, position, key = "values") {
    const [row, column] = this.place(measure, state, position);
    return row < 0 || column < 0 ? null : measure[key][step][row][column];
  }
  one(name, step, query, state, position) {  // all numbers of a cell, for one query, if made at this very checkpoint
    const array = this.arrays[name];
    if (!array || array.made(step) !== this.told.steps[step]) return [];
    const place = this.place(array, state, position), last = array.shape[4] ?? 1;
    return [...Array(last).keys()].map(k => array.at(step, query, ...place, k)).filter(one => one !== null);
  }
  draw() {
    const step = +this.slider.value, query = +this.query.value, measure = this.told.measures[+this.measure.value];
    this.shown.textContent = `step ${this.told.steps[step].toLocaleString("en")}`;
    this.slider.setAttribute("aria-valuetext", this.shown.textContent);
    this.told.states.forEach((_, s) => this.told.positions.forEach((_, p) => this.fill(this.cells[s][p], step, query, measure, s, p)));
    const right = Object.entries(this.told.truth).map(([name, tokens]) => `${name} ${tokens[query]?.filter(t => t >= 0).map(t => this.token(t)).join(" ")}`);
    const n = query < 0 ? `Means over ${measure.n} queries, floor in brackets. ` : right.length ? `Right: ${right.join(", ")}. ` : "";
    this.note.replaceChildren(n, make("b", { textContent: "bridge", style: "border-color:#e69f00" }), " or ",
      make("b", { textContent: "answer", style: "border-color:#009e73" }), " on top of the lens.");
    this.attention();
  }
  fill(cell, step, query, measure, s, p) {
    let share = this.mean(measure, step, s, p), lines = [], kind = "";
    const [low, high] = ["low", "high"].map(key => this.mean(measure, step, s, p, key));
    cell.title = query < 0 && low !== null && high !== null ? `95 % interval ${low} to ${high}` : "";
    if (query < 0) {
      const floor = this.mean(measure, step, s, p, "floors");
      if (share !== null) lines = [share.toFixed(2) + (floor === null ? "" : ` (${floor.toFixed(2)})`)];
    } else {
      ({ share, lines, kind } = this.single(step, query, measure, s, p));
    }
    const look = share === null ? { background: "transparent", ink: "inherit" } : colour(share);
    cell.className = "cell " + kind;
    cell.style.background = look.background;
    cell.style.color = look.ink;
    cell.replaceChildren(...lines.map((line, i) => i ? make("small", { textContent: line }) : line));
  }
  single(step, query, measure, s, p) {
    const lines = [], ranks = {};
    for (const column of this.told.columns) {
      const found = this.one(`lens/${column}/rank`, step, query, s, p);
      if (found.length) ranks[column] = found;
    }
    const top = this.one("lens/top", step, query, s, p);
    if (top.length) lines.push(top.map(t => this.token(t)).join(" "));
    const told = Object.entries(ranks).filter(([c]) => /^(bridge|answer|v\d)/.test(c)).map(([c, r]) => `${c} ${Math.min(...r) + 1}.`);
    if (told.length) lines.push(told.join(", "));
    const [changed] = this.one("tracing/changed", step, query, s, p);
    if (changed !== undefined) lines.push(changed ? "decides the answer" : "does not decide");
    const [kindOf, what, column] = measure.name.split("/");
    const score = what === "mrr" ? r => 1 / (r + 1) : what.startsWith("recall@") ? r => +(r < +what.slice(7)) : null;
    let share = null;
    if (kindOf === "lens" && score && ranks[column]) share = ranks[column].map(score).reduce((a, b) => a + b) / ranks[column].length;
    else if (kindOf === "tracing" && what === "changed" && changed !== undefined) share = changed / 200;
    const kind = ranks.answer?.includes(0) ? "answer" : Object.entries(ranks).some(([c, r]) => c.startsWith("bridge") && r.includes(0)) ? "bridge" : "";
    return { share, lines, kind };
  }
  attention() {
    const patterns = this.arrays["attention/patterns"], [state, position] = this.chosen;
    this.cells.flat().forEach(cell => cell.classList.remove("chosen"));
    this.cells[state][position].classList.add("chosen");
    if (!patterns) return this.side.replaceChildren();
    const step = +this.slider.value, query = +this.query.value, made = patterns.made(step);
    const [, count, , heads, , keys] = patterns.shape, from = patterns.columns.indexOf(this.told.positions[position]);
    // S[i] is written by step i - 1; a step of several blocks has heads of the names STEP.BLOCK.headN
    const writer = this.told.states[state].match(/\d+/)[0] - 1;
    const shown = made === undefined || from < 0 ? [] : patterns.heads.map((name, i) => [name, i]).filter(([name]) => parseInt(name) === writer);
    if (!shown.length) return this.side.replaceChildren(writer < 0 ? "S[0] is the embedding: no head has written it." : "No attention recorded.");
    const about = (query < 0 ? `, mean of ${count}` : "") + (made === this.told.steps[step] ? "" : `, at step ${made.toLocaleString("en")}`);
    this.side.replaceChildren(...shown.map(([name, i]) => {
      const index = Math.floor(i / heads), head = i % heads;
      const weights = [...Array(keys).keys()].map(key => {
        const seen = (query >= 0 ? [query] : [...Array(count).keys()]).map(n => patterns.at(step, n, index, head, from, key)).filter(one => one !== null);
        return seen.length ? seen.reduce((a, b) => a + b) / seen.length / 200 : null;
      });
      const names = patterns.columns;
      return make("table", {}, make("caption", { textContent: `${name} from ${this.told.positions[position]}${about}` }),
        make("tr", {}, ...names.map(one => make("th", { textContent: one }))),
        make("tr", {}, ...weights.slice(0, names.length).map(weight => {
          const look = colour(weight ?? 0), cell = make("td", { textContent: weight?.toFixed(2) ?? "–" });
          cell.style.background = look.background;
          cell.style.color = look.ink;
          return cell;
        })));
    }));
  }
}
for (const told of data("explorers")) {
  const place = document.getElementById("explorer-" + told.split);
  if (place) (window.grokExplorers ??= []).push(new Explorer(place, told));
}
document.documentElement.dataset.ready = "true";
