"use strict";
// Draws what /status and /history say, once a second. It only reads. Everything shown is set as text, never as markup.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}
function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  return node;
}
function show(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Figures
function scaled(value, step, units) {
  let unit = 0;
  while (value >= step - 0.05 && unit + 1 < units.length) { value /= step; unit++; }
  const digits = unit === 0 ? (value > 0 && value < 9.95 && value % 1 ? 1 : 0) : value >= 99.95 ? 0 : 1;
  return value.toFixed(digits) + (units[unit] && (units[unit].length > 1 ? "\u202f" : "")) + units[unit];
}
const count = (n) => scaled(n, 1000, ["", "k", "M", "G"]);
const bytes = (n) => scaled(n, 1024, ["\u202fB", "KiB", "MiB", "GiB", "TiB", "PiB"]);
const rate = (n) => scaled(n, 1000, ["\u202fB/s", "kB/s", "MB/s", "GB/s", "TB/s"]);
const millis = (n) => n === null || n === undefined ? "–" : n < 10 ? n.toFixed(2) + "\u202fms" : n < 1000 ? n.toFixed(0) + "\u202fms" : (n / 1000).toFixed(1) + "\u202fs";
function age(s) {
  if (s < 60) return s + "s";
  if (s < 3600) return Math.floor(s / 60) + "m " + s % 60 + "s";
  if (s < 86400) return Math.floor(s / 3600) + "h " + Math.floor(s % 3600 / 60) + "m";
  return Math.floor(s / 86400) + "d " + Math.floor(s % 86400 / 3600) + "h";
}

// History: columns of samples, newest last, all of one length.
const past = { seq: 0, times: [], series: {}, max: 600 };
function remember(news) {
  if (news.from !== past.seq || !past.seq) { past.times = []; past.series = {}; }
  const known = past.times.length;
  past.seq = news.seq;
  past.max = news.samples_max;
  past.times = past.times.concat(news.times_ms).slice(-past.max);
  const series = {};
  for (const name in news.series) {
    const before = past.series[name];
    series[name] = {};
    for (const key in news.series[name]) {
      const old = before ? before[key] : new Array(known).fill(null);
      series[name][key] = old.concat(news.series[name][key]).slice(-past.max);
    }
  }
  past.series = series;
}
const row = (name, key) => past.series[name] ? past.series[name][key] : [];
const last = (values) => values.length ? values[values.length - 1] ?? 0 : 0;

// Graphs. x: one unit a sample, the newest at the right edge. y: 0 at the bottom, 100 at the top.
function paths(values, top) {
  let line = "", area = "", start = null, previous = null;
  const x = (ix) => past.max - values.length + ix;
  const close = () => { if (start !== null) area += `L${previous} 100L${start} 100Z`; start = null; };
  values.forEach((value, ix) => {
    if (value === null) { close(); return; }
    const at = `${x(ix)} ${(100 - 100 * value / top).toFixed(2)}`;
    line += (start === null ? "M" : "L") + at;
    area += (start === null ? "M" : "L") + at;
    if (start === null) start = x(ix);
    previous = x(ix);
  });
  close();
  return [line, area];
}
function roundUp(value) {
  const step = Math.pow(10, Math.floor(Math.log10(value)));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((n) => n * step).find((n) => n >= value * 0.999) || value;
}

class Graph {
  constructor(title, format, floor, lines) {
    Object.assign(this, { format, floor, lines, hovered: null });
    const figure = make("figure");
    figure.append(make("figcaption", "", title));
    this.top = make("span", "top");
    const now = make("div", "now");
    this.svg = shape("svg", { viewBox: `0 0 ${past.max - 1} 100`, preserveAspectRatio: "none", role: "img", "aria-label": title });
    for (const y of [0, 50, 100]) this.svg.append(shape("line", { class: "grid", x1: 0, x2: past.max, y1: y, y2: y }));
    for (const line of lines) {
      const value = make("b", line.tone);
      line.value = make("span");
      value.append(line.value, make("i", "", line.label));
      now.append(value);
      line.area = shape("path", { class: "area " + line.tone });
      line.path = shape("path", { class: "stroke " + line.tone });
      this.svg.append(line.area, line.path);
    }
    this.cursor = shape("line", { class: "cursor", y1: 0, y2: 100, visibility: "hidden" });
    this.svg.append(this.cursor);
    const axis = make("div", "axis");
    this.from = make("span");
    this.to = make("span", "", "now");
    axis.append(this.from, this.to);
    figure.append(this.top, now, this.svg, axis);
    $("graphs").append(figure);
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      this.hovered = Math.round((event.clientX - box.left) / box.width * (past.max - 1));
      this.read();
    });
    this.svg.addEventListener("pointerleave", () => { this.hovered = null; this.read(); });
  }
  draw() {
    this.rows = this.lines.map((line) => line.read());
    const peak = Math.max(this.floor, ...this.rows.flat().map((value) => value ?? 0));
    const top = roundUp(peak);
    show(this.top, "scale " + this.format(top));
    this.svg.setAttribute("viewBox", `0 0 ${past.max - 1} 100`);
    this.lines.forEach((line, ix) => {
      // A second line that is nothing but zero would only colour the axis.
      const idle = ix > 0 && !this.rows[ix].some((value) => value);
      const [stroke, area] = idle ? ["", ""] : paths(this.rows[ix], top);
      line.path.setAttribute("d", stroke);
      line.area.setAttribute("d", area);
    });
    show(this.from, `${Math.round(past.max / 60)} min ago`);
    this.read();
  }
  // The figures above the graph: of the newest sample, or of the one that is pointed at.
  read() {
    if (!this.rows) return;
    const length = past.times.length;
    const at = this.hovered === null ? length - 1 : this.hovered - (past.max - length);
    const pointed = this.hovered !== null && at >= 0 && at < length;
    this.cursor.setAttribute("visibility", pointed ? "visible" : "hidden");
    if (pointed) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.hovered);
    const ix = pointed ? at : length - 1;
    this.lines.forEach((line, n) => show(line.value, this.format(this.rows[n][ix] ?? 0)));
    show(this.to, pointed ? new Date(past.times[at]).toLocaleTimeString() : "now");
  }
}
const total = (key) => () => row("total", key);
const graphs = [
  new Graph("Throughput", rate, 1000, [
    { label: "to clients", tone: "one", read: total("out") }, { label: "from clients", tone: "two", read: total("in") }]),
  new Graph("New connections a second", count, 5, [
    { label: "accepted", tone: "one", read: total("new") }, { label: "refused", tone: "two", read: total("failed") }]),
  new Graph("Live connections and sessions", count, 5, [{ label: "live", tone: "one", read: total("active") }]),
];
function spark(svg, values) {
  const top = Math.max(1, ...values.map((value) => value ?? 0)) * 1.05;
  if (!svg.firstChild) svg.append(shape("path", { class: "area one" }), shape("path", { class: "stroke one" }));
  svg.setAttribute("viewBox", `0 0 ${past.max - 1} 100`);
  svg.classList.toggle("quiet", !values.some((value) => value));
  const [line, area] = paths(values, top);
  svg.children[0].setAttribute("d", area);
  svg.children[1].setAttribute("d", line);
}

// Tables: rows are made once for each key and then only their text changes.
class Table {
  constructor(columns) {
    this.columns = columns;
    this.node = make("table");
    const head = make("thead"), heads = make("tr");
    for (const column of columns) heads.append(make("th", column.className || "", column.title));
    head.append(heads);
    this.body = make("tbody");
    this.node.append(head, this.body);
    this.rows = new Map();
  }
  fill(items, key) {
    const seen = new Set();
    items.forEach((item, ix) => {
      const id = key(item);
      seen.add(id);
      let tr = this.rows.get(id);
      if (!tr) {
        tr = make("tr");
        for (const column of this.columns) {
          const td = make("td", column.className || "");
          if (column.named !== false) td.dataset.name = column.title;
          if (column.svg) td.append(shape("svg", { preserveAspectRatio: "none", "aria-hidden": "true" }));
          tr.append(td);
        }
        this.rows.set(id, tr);
      }
      this.columns.forEach((column, n) => {
        const td = tr.children[n];
        if (column.svg) spark(td.firstChild, column.svg(item));
        else show(td, String(column.text(item)));
        if (!column.tone && column.className === "r") td.classList.toggle("none", /^(0|–)(\/s)?$/.test(td.textContent));
        if (column.tone) td.className = `${column.className} ${column.tone(item)}`;
        if (column.hint) td.title = column.hint(item);
      });
      if (this.body.children[ix] !== tr) this.body.insertBefore(tr, this.body.children[ix] || null);
    });
    for (const [id, tr] of this.rows) if (!seen.has(id)) { tr.remove(); this.rows.delete(id); }
  }
}

const listeners = new Table([
  { title: "Name", className: "strong half", named: false, text: (l) => l.name },
  { title: "Address", className: "mono half", named: false, text: (l) => `${l.protocol} ${l.bind.join(" ")}` },
  { title: "Pool", text: (l) => l.pool },
  { title: "Engine", text: (l) => l.engine },
  { title: "Live", className: "r", text: (l) => count(l.active) },
  { title: "New", className: "r", text: (l) => count(last(row("listener/" + l.name, "new"))) + "/s" },
  { title: "Refused", className: "r", text: (l) => count(l.refused) },
  { title: "From clients", className: "r half", text: (l) => rate(last(row("listener/" + l.name, "in"))) },
  { title: "To clients", className: "r half", text: (l) => rate(last(row("listener/" + l.name, "out"))) },
  { title: "Ten minutes", className: "trend", named: false, svg: (l) => row("listener/" + l.name, "out") },
]);
$("listeners").append(listeners.node);

const workers = new Table([
  { title: "Worker", className: "strong", text: (w) => w.id },
  { title: "Connections", className: "r", text: (w) => count(w.connections) },
  { title: "UDP sessions", className: "r", text: (w) => count(w.udp_sessions) },
  { title: "Longest turn", className: "r", text: (w) => millis(w.turn_ms_max) },
]);
$("workers").append(workers.node);

const vips = new Table([
  { title: "Address", className: "mono strong half", named: false, text: (v) => v.address },
  { title: "State", className: "state half", named: false, text: (v) => v.state, tone: (v) => v.state },
  { title: "Holder", text: (v) => v.holder ?? "–" },
  { title: "Interface", text: (v) => v.interface },
  { title: "Since", className: "r half", text: (v) => age(v.since_s) },
  { title: "Reason", className: "reason whole", named: false, text: (v) => v.reason, hint: (v) => v.reason },
]);
$("vips").append(vips.node);

const pools = new Map();
function poolTable(name) {
  const series = (b) => `backend/${name}/${b.name}`;
  return new Table([
    { title: "Backend", className: "strong half", named: false, text: (b) => b.name + (b.backup ? " (backup)" : "") },
    { title: "State", className: "state half", named: false, text: (b) => b.state, tone: (b) => b.state },
    { title: "Address", className: "mono whole", named: false, text: (b) => b.address, hint: (b) => b.source || "configuration" },
    { title: "Weight", className: "r", text: (b) => b.weight },
    { title: "Live", className: "r", text: (b) => count(b.active) },
    { title: "New", className: "r", text: (b) => count(last(row(series(b), "new"))) + "/s" },
    { title: "Failed", className: "r", text: (b) => count(b.failed) },
    { title: "Connect", className: "r half", text: (b) => millis(b.connect_ms) },
    { title: "Throughput", className: "r half", text: (b) => rate(last(row(series(b), "in")) + last(row(series(b), "out"))) },
    { title: "Ten minutes", className: "trend", named: false, svg: (b) => row(series(b), "out") },
    { title: "For", className: "r half", text: (b) => age(b.since_s) },
    { title: "Reason", className: "reason half", text: (b) => b.reason, hint: (b) => b.reason },
  ]);
}
const SERVING = { backup: ", backups serve", all: ", nothing is up: trying all", none: "" };
function drawPools(status) {
  const wanted = status.pools.map((pool) => pool.name);
  for (const [name, pool] of pools) if (!wanted.includes(name)) { pool.node.remove(); pools.delete(name); }
  status.pools.forEach((pool, ix) => {
    let known = pools.get(pool.name);
    if (!known) {
      known = { node: make("div"), small: make("small"), sources: make("div"), table: poolTable(pool.name) };
      const head = make("h2", "", pool.name);
      head.append(known.small);
      known.node.append(head, known.sources, known.table.node);
      pools.set(pool.name, known);
    }
    show(known.small, `${pool.balance}, ${pool.eligible} of ${pool.backends.length} take new work${SERVING[pool.serving] || ""}`);
    known.sources.replaceChildren(...(pool.sources || []).map((source) => {
      const old = source.age_s === null ? "never answered" : "confirmed " + age(Math.round(source.age_s)) + " ago";
      const line = make("p", source.error ? "source bad" : "source", `${source.source}: ${source.members} members, ${old}`);
      if (source.error) line.append(make("span", "", ` failing for ${age(source.error_s)}: ${source.error}`));
      return line;
    }));
    known.table.fill(pool.backends, (backend) => backend.name + " " + backend.address);
    const holder = $("pools");
    if (holder.children[ix] !== known.node) holder.insertBefore(known.node, holder.children[ix] || null);
  });
}

function notice(text) {
  $("notice").hidden = !text;
  show($("notice"), text || "");
}
function facts(status) {
  const parts = [`version ${status.version}`, `up ${age(status.uptime_s)}`, `generation ${status.generation}`, status.config_file || "command line"];
  if ($("facts").dataset.shown !== parts.join()) {
    $("facts").dataset.shown = parts.join();
    $("facts").replaceChildren(...parts.map((part) => make("span", "", part)));
  }
}
function draw(status, healthy) {
  const [tone, word] = !healthy.ok ? ["bad", healthy.reason] : status.stopping ? ["note", "stopping"] : ["good", "serving"];
  $("health").className = "health " + tone;
  show($("health"), word);
  facts(status);
  notice(status.reload_error && "The last reload was refused, the previous configuration is in force:\n" + status.reload_error);
  graphs.forEach((graph) => graph.draw());
  drawPools(status);
  listeners.fill(status.listeners, (listener) => listener.name);
  workers.fill(status.workers, (worker) => worker.id);
  $("failover").hidden = !status.vips.length && !status.nodes.length;
  vips.fill(status.vips, (vip) => vip.address);
  $("nodes").replaceChildren(...status.nodes.map((node) => {
    const chip = make("span");
    chip.append(make("span", "state " + (node.alive ? "alive" : "dead"), node.name),
      ` ${node.last_beat_ms === null ? "never heard" : "heard " + node.last_beat_ms + "\u202fms ago"}`);
    return chip;
  }));
  const p = status.process;
  show($("process"), `${count(p.connections)} of ${count(p.connections_max)} connections, ${count(p.udp_sessions)} of ${count(p.udp_sessions_max)} UDP sessions, ` +
    `${count(p.open_fds)} of ${count(p.limit_fds)} descriptors, ${bytes(p.resident_bytes)} memory, ${bytes(p.spliced_bytes)} spliced` +
    (status.kernel ? `, kernel engine: ${count(status.kernel.flows)} of ${count(status.kernel.flows_max)} flows` : "") +
    (p.records_dropped ? `, ${count(p.records_dropped)} access records lost` : ""));
  document.title = `weir · ${count(last(row("total", "active")))} live`;
}

let answered = Date.now(), busy = false;
function get(path) {
  return fetch(path, { cache: "no-store", signal: AbortSignal.timeout(8000) });
}
async function turn() {
  if (busy) return;
  busy = true;
  try {
    const [status, history, health] = await Promise.all([get("status"), get("history?since=" + past.seq), get("healthz")]);
    if (!status.ok || !history.ok) throw new Error((await status.text()).trim());
    remember(await history.json());
    draw(await status.json(), { ok: health.ok, reason: (await health.text()).trim() });
    answered = Date.now();
  } catch (error) {
    $("health").className = "health bad";
    show($("health"), "no answer");
    notice(`No answer from weir for ${age(Math.round((Date.now() - answered) / 1000))}.`);
  } finally {
    busy = false;
  }
}
async function run() {
  for (;;) {
    if (!document.hidden) await turn();
    await new Promise((done) => setTimeout(done, 1000));
  }
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });
run();
