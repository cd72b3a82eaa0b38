"use strict";
// Everything that is shown is text in a node of its own (`h`): no string ever becomes HTML.
(() => {
  const POLL_MS = 3000, POLL_ENDED_MS = 15000, ASK_MS = 6000, FOLD = 24, MOST_NODES = 60, MOST_LEGEND = 8;
  const SIGNS = {
    done: ["✓", "good"], completed: ["✓", "good"], running: ["▶", "busy"], held: ["‖", "bad"],
    failed: ["✕", "bad"], removed: ["✕", "bad"], disconnected: ["!", "warn"],
    suspended: ["‖", "warn"], retrying: ["↻", "warn"], idle: ["…", ""], ready: ["…", ""],
    waiting: ["○", ""], "not run": ["–", ""],
  };
  const RANK = ["held", "failed", "retrying", "disconnected", "suspended", "running", "idle",
    "removed", "ready", "done", "waiting", "not run"];
  const KINDS = ["useful", "repeated", "wasted", "open", "suspended"];
  const SVG = "http://www.w3.org/2000/svg";
  const main = document.getElementById("main");
  const embedded = document.getElementById("data");
  const file = embedded && JSON.parse(embedded.textContent);
  // What its reader has chosen; a new reading must not take it away.
  const chosen = { open: new Set(), stream: null, job: null, metrics: null };
  const told = new Map();  // the outputs that were looked at
  let shown = new Map();  // sections by name: what they were drawn from
  let page = null, timer = null, turn = 0;

  // --- text ---

  // What a job wrote must not reverse the line it stands in, nor hide in it.
  const clean = (text) => String(text ?? "").replace(/\p{C}/gu, "\ufffd");
  const number = (value, digits = 4) => {
    if (typeof value !== "number") return value === null || value === undefined ? "–" : clean(value);
    if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
    return String(Number(value.toPrecision(digits)));
  };
  const duration = (seconds) => {
    if (seconds === null || seconds === undefined) return "";
    const s = Math.floor(seconds), two = (n) => String(n).padStart(2, "0");
    const [hour, minute] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
    return hour ? `${hour}:${two(minute)}:${two(s % 60)}` : `${minute}:${two(s % 60)}`;
  };
  const age = (seconds) => {
    for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
      if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
    }
    return `${Math.max(0, Math.floor(seconds))} s`;
  };
  const moment = (time) => (time ? new Date(time * 1000).toLocaleString() : "");
  const size = (bytes) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let at = 0, value = bytes;
    while (value >= 1000 && at < 4) { value /= 1000; at += 1; }
    return `${Number(value.toPrecision(3))} ${units[at]}`;
  };
  const machine = (host) => {
    const name = (host || "").split("@").pop();
    return (host || "").includes("@") ? name.split(".")[0] : name;
  };
  // A terminal's colours are left out, and of a line drawn anew (progress bars) the last is kept.
  const printed = (text) => text.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "").split("\n")
    .map((line) => line.replace(/\r+$/, "").split("\r").pop())
    .map((line) => line.split("\t").map(clean).join("\t")).join("\n");
  const stem = (name) => (/^(.*?)(?:[-_.]?\d.*)$/.exec(name) || [])[1] || name;
  const rank = (state) => (RANK.includes(state) ? RANK.indexOf(state) : RANK.length);
  const worst = (stages) => [...stages].sort((a, b) => rank(a.state) - rank(b.state))[0].state;

  // --- nodes ---

  function fill(node, properties, children) {
    for (const [name, value] of Object.entries(properties || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "onclick" || name === "onchange") node[name] = value;
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(clean(child)));
    }
    return node;
  }
  const h = (name, properties, ...children) => fill(document.createElement(name), properties, children);
  const s = (name, properties, ...children) => fill(document.createElementNS(SVG, name), properties, children);
  const name = (text) => h("bdi", {}, text);
  const sign = (state) => SIGNS[state] || ["", ""];
  const pill = (state) => h("span", { class: `pill ${sign(state)[1]}` },
    h("span", { "aria-hidden": "true" }, `${sign(state)[0]} `), state);
  const link = (run, stage, ...words) => h("a", { href: address(run, stage), "data-key": `link ${run}/${stage}` }, words);
  const address = (run, stage) => `#/${encodeURIComponent(run)}${stage ? `/${encodeURIComponent(stage)}` : ""}`;
  const facts = (pairs) => h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));

  // `columns` are [heading, class]; a row is a list of cells, or an element of its own.
  function table(label, columns, rows, properties = {}) {
    const heading = (word, kind) => h("th", { scope: "col", class: kind.replace("mono", "") }, word);
    const cell = (value, at) => (at === 0
      ? h("th", { scope: "row" }, value) : h("td", { class: columns[at][1] }, value));
    return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label, "data-key": `scroll ${label}` },
      h("table", properties,
        h("thead", {}, h("tr", {}, columns.map(([word, kind]) => heading(word, kind)))),
        h("tbody", {}, rows.map((row) => (row instanceof Node ? row
          : h("tr", { class: row.kind }, (row.cells || row).map(cell)))))));
  }

  // A section is drawn anew only when what it shows has changed: what one reads stays in place.
  function section(key, from, draw) {
    const print = JSON.stringify(from), old = document.getElementById(`s-${key}`);
    if (old && shown.get(key) === print) { page.push(old); return; }
    const drawn = draw();
    if (!drawn) { shown.delete(key); return; }
    shown.set(key, print);
    drawn.id = `s-${key}`;
    for (const open of old?.querySelectorAll("details[open]") || []) {
      const again = [...drawn.querySelectorAll("details")].find((one) => one.dataset.key === open.dataset.key);
      if (again) again.open = true;
    }
    page.push(drawn);
  }
  function put(sections) {
    const active = document.activeElement?.closest("[data-key]")?.dataset.key;
    const places = new Map([...main.querySelectorAll("[data-key]")].map((n) => [n.dataset.key, [n.scrollLeft, n.scrollTop]]));
    const now = [...main.children];
    if (now.length !== sections.length || now.some((node, at) => node !== sections[at])) {
      for (const node of now) if (!sections.includes(node)) node.remove();
      sections.forEach((node, at) => { if (main.children[at] !== node) main.insertBefore(node, main.children[at] || null); });
    }
    for (const node of main.querySelectorAll("[data-key]")) {
      const place = places.get(node.dataset.key);
      if (place && (node.scrollLeft !== place[0] || node.scrollTop !== place[1])) node.scrollTo(...place);
      if (active === node.dataset.key && !node.contains(document.activeElement)) node.focus({ preventScroll: true });
    }
  }

  // --- all runs ---

  function drawRuns(found) {
    page = [];
    section("runs", [found.runs, found.total], () => {
      if (!found.runs.length) {
        return h("section", { class: "card" }, h("h1", {}, "No runs yet"),
          h("p", {}, "Here is what ", h("code", {}, "condorctl submit"), " starts, as soon as it has started something."));
      }
      const several = new Set(found.runs.map((run) => run.owner)).size > 1;
      const columns = [["run", ""], ["state", "k"], ["stages", ""], ...(several ? [["owner", "k mid"]] : []),
        ["pipeline", "mid"], ["started", "k mid"], ["took", "n"], ["CPU h", "n wide"], ["GPU h", "n wide"]];
      const rows = found.runs.map((run) => [
        link(run.run, "", name(run.run)), pill(run.state),
        bar(run.stages.done, run.stages.total, run.state, `${run.stages.done}/${run.stages.total}`),
        ...(several ? [name(run.owner)] : []), name(run.pipeline), moment(run.submitted),
        `${duration(run.elapsed_s)}${run.unreachable ? " ?" : ""}`,
        number(run.cost.cpu_h.total, 3), number(run.cost.gpu_h.total, 3)]);
      const more = found.total - found.runs.length;
      return h("section", { class: "card" }, h("h1", {}, "Runs"), table("Runs", columns, rows),
        found.runs.some((run) => run.unreachable) && h("p", { class: "soft" }, "?: last known state"),
        more > 0 && h("p", { class: "soft" }, `and ${more} older ones: condorctl status --all`));
    });
    notice(found.note);
    put(page);
  }

  function notice(note) {
    if (note) section("note", note, () => h("section", { class: "card notice" }, h("strong", {}, "Not all is known: "), note));
  }
  const bar = (done, total, state, words) => h("div", { class: "bar" },
    h("progress", { max: total || 1, value: total ? done : 0, class: sign(state)[1], "aria-label": words }),
    h("span", { class: "soft" }, words));

  // --- one run ---

  function drawRun(view, curves, selected) {
    page = [];
    const { stages } = view;
    section("head", [view.state, view.elapsed_s, view.eta_s, view.counts, view.unreachable, Math.floor((view.age_s || 0) / 5)], () => head(view));
    const troubled = stages.filter((stage) => needed(stage) || stage.state === "failed");
    section("trouble", [troubled, view.problem], () => troubles(view, troubled));
    notice(view.note);
    section("graph", [stages.map((stage) => [stage.stage, stage.state, stage.needs]), narrow()], () => graph(view));
    section("stages", [stages, [...chosen.open], selected], () => stageTable(view, selected));
    const stage = stages.find((one) => one.stage === selected);
    if (stage) {
      const own = curves.curves.filter((curve) => curve.stage === selected);
      section("stage", [stage, own, view.costs[selected], chosen.job, chosen.stream], () => stagePanel(view, stage, own));
    }
    section("curves", [curves, chosen.metrics, stages.map((one) => one.stage)], () => metrics(view, curves));
    section("results", view.results, () => results(view.results));
    section("cost", [view.cost, view.costs], () => costs(view));
    put(page);
  }

  function head(view) {
    const params = Object.entries(view.params);
    const plain = (value) => (typeof value === "object" ? JSON.stringify(value) : value);
    return h("section", {},
      h("h1", {}, name(view.run), pill(view.state)),
      facts([
        ["took", duration(view.elapsed_s)], ["left", view.eta_s === null ? null : duration(view.eta_s)],
        ["stages", Object.entries(view.counts).sort((a, b) => rank(a[0]) - rank(b[0])).map(([state, n]) => `${n} ${state}`).join(", ")],
        ["submitted", moment(view.submitted)], ["by", name(view.owner)],
        ["DAG job", view.dag && h("span", { class: "mono" }, view.dag)],
        ["commit", view.commit && h("span", { class: "mono" }, String(view.commit).slice(0, 12))],
        ["as of", view.age_s === null ? null : `${age(view.age_s)} ago`],
      ]),
      params.length > 0 && facts(params.slice(0, 40).map(([key, value]) => [key, h("bdi", { class: "mono" }, plain(value))])),
      view.unreachable && h("p", { class: "warn" }, "Last known state: ", view.unreachable));
  }

  // Why it needs its user: it is held, or its nodes give it back again and again.
  const needed = (stage) => stage.hold || (stage.sent_back && stage.sent_back.times > 1 ? stage.sent_back : null);

  function troubles(view, troubled) {
    if (!troubled.length && !view.problem) return null;
    const most = 10;
    const items = troubled.slice(0, most).map((stage) => [stage, needed(stage)]).map(([stage, why]) => h("li", {},
      h("p", {}, link(view.run, stage.stage, name(stage.stage)), " ", pill(stage.state), " ", h("span", { class: "soft mono" }, stage.job)),
      why && why.times && h("p", {}, `It was sent back ${why.times} times in a row.`),
      why && [h("p", {}, h("strong", {}, "Cause: "), why.cause), h("p", {}, h("strong", {}, "Mend: "), why.mend),
        why.reason && h("p", { class: "soft" }, "HTCondor says: ", h("bdi", {}, why.reason))],
      !why && stage.ended_with && h("p", {}, "It ended with ", stage.ended_with, `: condorctl explain ${stage.job} looks for the cause`)));
    return h("section", { class: "card trouble", "aria-label": "What needs you" },
      h("h2", {}, "Needs you"),
      h("ul", {}, view.problem && h("li", {}, "DAGMan is ", view.state, ": ", view.problem), items),
      troubled.length > most && h("p", { class: "soft" }, `and ${troubled.length - most} more`));
  }

  // --- the graph ---

  const narrow = () => window.innerWidth < 620;

  function graph(view) {
    const folded = view.stages.length > FOLD;
    const key = (stage) => (folded ? stem(stage) : stage);
    const nodes = new Map(), depth = new Map();
    for (const stage of view.stages) {
      depth.set(stage.stage, Math.max(0, ...stage.needs.map((need) => (depth.get(need) ?? -1) + 1)));
      const id = key(stage.stage);
      if (!nodes.has(id)) nodes.set(id, { id, stages: [], needs: new Set(), layer: depth.get(stage.stage) });
      const node = nodes.get(id);
      node.stages.push(stage);
      stage.needs.map(key).filter((need) => need !== id).forEach((need) => node.needs.add(need));
    }
    if (nodes.size < 2 || nodes.size > MOST_NODES) return null;
    const layers = [];
    for (const node of nodes.values()) (layers[node.layer] ||= []).push(node);
    const rows = layers.filter(Boolean);
    // Each beside those it needs, so that few edges cross.
    const middle = (node) => {
      const at = [...node.needs].map((need) => nodes.get(need)?.slot).filter((slot) => slot !== undefined);
      return at.length ? at.reduce((a, b) => a + b, 0) / at.length : 0;
    };
    for (const row of rows) {
      row.sort((a, b) => middle(a) - middle(b));
      row.forEach((node, at) => { node.slot = at - (row.length - 1) / 2; });
    }
    const down = narrow(), [W, H] = [150, 44], gap = down ? [14, 30] : [46, 14];
    const most = Math.max(...rows.map((row) => row.length));
    const width = down ? most * (W + gap[0]) : rows.length * (W + gap[0]);
    const height = down ? rows.length * (H + gap[1]) : most * (H + gap[1]);
    rows.forEach((row, layer) => row.forEach((node) => {
      node.x = down ? width / 2 + node.slot * (W + gap[0]) - W / 2 : layer * (W + gap[0]) + gap[0] / 2;
      node.y = down ? layer * (H + gap[1]) + gap[1] / 2 : height / 2 + node.slot * (H + gap[1]) - H / 2;
    }));
    const edges = [...nodes.values()].flatMap((node) => [...node.needs].filter((need) => nodes.has(need)).map((need) => {
      const from = nodes.get(need);
      const [x1, y1, x2, y2] = down ? [from.x + W / 2, from.y + H, node.x + W / 2, node.y]
        : [from.x + W, from.y + H / 2, node.x, node.y + H / 2];
      const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2];
      const curve = down ? `M${x1} ${y1}C${x1} ${my} ${x2} ${my} ${x2} ${y2 - 6}` : `M${x1} ${y1}C${mx} ${y1} ${mx} ${y2} ${x2 - 6} ${y2}`;
      const tip = down ? `M${x2} ${y2}l-4 -7h8z` : `M${x2} ${y2}l-7 -4v8z`;
      return [s("path", { class: "edge", d: curve }), s("path", { class: "tip", d: tip })];
    }));
    const boxes = [...nodes.values()].map((node) => {
      const state = worst(node.stages), many = node.stages.length > 1;
      const label = many ? `${node.id}* (${node.stages.length})` : node.stages[0].stage;
      const done = node.stages.filter((stage) => stage.state === "done").length;
      const words = many ? `${sign(state)[0]} ${state}, ${done}/${node.stages.length} done` : `${sign(state)[0]} ${state}`;
      const short = label.length > 18 ? `${label.slice(0, 17)}…` : label;
      const box = [s("title", {}, `${label}: ${words}`),
        s("rect", { class: `box ${sign(state)[1]}`, x: node.x, y: node.y, width: W, height: H, rx: 7 }),
        s("text", { class: "name", x: node.x + 10, y: node.y + 18 }, short),
        s("text", { class: sign(state)[1] || "soft", x: node.x + 10, y: node.y + 34 }, words)];
      return many ? s("g", {}, box) : s("a", { href: address(view.run, node.stages[0].stage), tabindex: "-1" }, box);
    });
    const label = `Graph of ${nodes.size} ${folded ? "groups of " : ""}stages; the table below tells what each needs`;
    return h("section", { class: "card graph" }, h("h2", {}, "Graph"),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label, "data-key": "graph" },
        s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, edges, boxes)));
  }

  // --- stages ---

  const COLUMNS = [["stage", ""], ["state", "k"], ["progress", ""], ["metrics", "metrics mid"], ["needs", "wide"],
    ["time", "n"], ["left", "n mid"], ["machine", "k wide"], ["job", "k wide mono"]];

  function stageTable(view, selected) {
    const folded = view.stages.length > FOLD, rows = [];
    const groups = new Map();
    for (const stage of view.stages) {
      const key = folded ? stem(stage.stage) : stage.stage;
      groups.set(key, [...(groups.get(key) || []), stage]);
    }
    for (const [key, members] of groups) {
      if (members.length === 1) { rows.push(stageRow(view, members[0], selected, "")); continue; }
      const open = chosen.open.has(key) || members.some((stage) => stage.stage === selected);
      rows.push(groupRow(key, members, open));
      if (open) members.forEach((stage) => rows.push(stageRow(view, stage, selected, "in")));
    }
    return h("section", { class: "card" }, h("h2", {}, "Stages"), table("Stages", COLUMNS, rows));
  }

  function groupRow(key, members, open) {
    const counts = new Map();
    for (const { state } of members) counts.set(state, (counts.get(state) || 0) + 1);
    const words = [...counts].sort((a, b) => rank(a[0]) - rank(b[0]));
    const toggle = () => { open ? chosen.open.delete(key) : chosen.open.add(key); redraw(); };
    return h("tr", { class: "fold" },
      h("th", { scope: "row" }, h("button", { class: "plain", "aria-expanded": String(open), "data-key": `fold ${key}`, onclick: toggle },
        `${open ? "▾" : "▸"} `, name(`${key}*`), ` (${members.length})`)),
      h("td", { class: "k" }, pill(worst(members))),
      h("td", {}, bar(counts.get("done") || 0, members.length, worst(members), `${counts.get("done") || 0}/${members.length}`)),
      h("td", { colspan: COLUMNS.length - 3 }, words.map(([state, n]) => [h("span", { class: sign(state)[1] || "soft" }, `${n} ${state}`), "  "])));
  }

  function stageRow(view, stage, selected, kind) {
    return { kind: `${kind} ${stage.stage === selected ? "on" : ""}`, cells: [
      link(view.run, stage.stage, name(stage.stage)), pill(stage.state), progress(stage),
      stage.epoch === null ? "" : figures(stage.metrics, 3),
      stage.needs.length > 4 ? `${stage.needs.length} stages` : stage.needs.map((need, at) => [at ? ", " : "", name(need)]),
      duration(stage.elapsed_s), duration(stage.eta_s),
      stage.reused_from ? ["from ", name(stage.reused_from)] : name(machine(stage.host)), stage.job || ""] };
  }

  const figures = (metrics, most) => Object.entries(metrics).slice(0, most)
    .map(([key, value], at) => [at ? " " : "", h("bdi", {}, `${key}=${number(value)}`)]);

  function progress(stage) {
    const processes = Object.values(stage.counts).reduce((a, b) => a + b, 0);
    if (processes > 1) {
      const done = stage.counts.completed || 0;
      return bar(done, processes, stage.state, `${done}/${processes} jobs`);
    }
    if (stage.epochs) return bar(Math.min(stage.epoch, stage.epochs), stage.epochs, stage.state, `${number(stage.epoch)}/${number(stage.epochs)}`);
    return "";
  }

  function stagePanel(view, stage, own) {
    const jobs = stage.jobs.map((job) => [
      h("span", { class: "mono" }, job.job), String(job.attempt), pill(job.state), name(machine(job.host)), moment(job.started), moment(job.finished),
      job.ended_with || "", [job.cpus ? `${job.cpus} CPU` : "", job.gpus ? `, ${job.gpus} GPU` : ""],
      job.usage.memory_mb === undefined ? "" : `${number(job.usage.memory_mb, 3)} MB`]);
    const columns = [["job", ""], ["try", "n"], ["state", "k"], ["machine", "k"], ["started", "k"], ["ended", "k"], ["ended with", ""], ["slot", "k"], ["memory", "n"]];
    const events = stage.jobs.flatMap((job) => job.states.map((one) => [
      moment(one.time), h("span", { class: "mono" }, job.job), pill(one.state), h("bdi", {}, one.detail)]));
    const kept = stage.jobs.flatMap((job) => job.checkpoints.map((one) => [
      h("bdi", { class: "mono" }, one.path), number(one.epoch), size(one.bytes), h("span", { class: "mono" }, one.sha256.slice(0, 12))]));
    const cost = view.costs[stage.stage];
    return h("section", { class: "card" },
      h("h2", { tabindex: "-1", "data-key": "stage" }, "Stage ", name(stage.stage), " ", pill(stage.state)),
      facts([
        ["needs", stage.needs.length ? h("bdi", {}, stage.needs.join(", ")) : null], ["outputs from", stage.reused_from && name(stage.reused_from)],
        ["CPU h", number(cost.cpu_h.total, 3)], ["GPU h", cost.gpu_h.total ? number(cost.gpu_h.total, 3) : null],
        ["waited", duration(cost.queue_s)], ["an epoch takes", stage.s_per_epoch ? `${number(stage.s_per_epoch, 3)} s` : null],
        ["last sign", stage.last_sign ? moment(stage.last_sign) : null]]),
      jobs.length > 0 && [h("h3", {}, "Jobs"), table("Jobs", columns, jobs.slice(-100))],
      own.length > 0 && [h("h3", {}, "Metrics"), charts(own, (curve) => (stage.jobs.length > 1 ? `process ${curve.process}` : curve.stage))],
      stage.id && output(stage),
      events.length > 0 && h("details", { "data-key": "states" }, h("summary", {}, `What happened (${events.length})`),
        table("What happened", [["when", "k"], ["job", ""], ["state", "k"], ["", ""]], events.slice(-200))),
      kept.length > 0 && h("details", { "data-key": "checkpoints" }, h("summary", {}, `Checkpoints (${kept.length})`),
        table("Checkpoints", [["path", ""], ["epoch", "n"], ["size", "n"], ["sha256", ""]], kept.slice(-100))));
  }

  // --- output ---

  function output(stage) {
    const ids = [...new Set([stage.id, ...stage.jobs.map((job) => job.id).reverse()])].slice(0, 100);
    const job = ids.includes(chosen.job) ? chosen.job : stage.id;
    const stream = chosen.stream || (["failed", "held", "retrying"].includes(stage.state) ? "err" : "out");
    const text = h("pre", { tabindex: "0", "aria-label": "Output", "data-key": `output ${job} ${stream}` }, "…");
    const about = h("span", { class: "soft" });
    const choose = (one) => h("button", { "aria-pressed": String(one === stream), "data-key": `stream ${one}`,
      onclick: () => { chosen.stream = one; redraw(); } }, `std${one}`);
    const key = `${job} ${stream} ${stage.state}`, before = told.get(key);
    const show = (found) => {
      const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 4;
      text.replaceChildren(found.text ? document.createTextNode(printed(found.text)) : h("span", { class: "soft" }, found.note));
      about.textContent = !found.cut ? "" : found.bytes ? `the end of ${size(found.bytes)}` : "the end";
      if (atEnd) text.scrollTop = text.scrollHeight;
    };
    if (before) { show(before.found); requestAnimationFrame(() => { if (before.atEnd) text.scrollTop = text.scrollHeight; }); }
    text.onscroll = () => { const kept = told.get(key); if (kept) kept.atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 4; };
    if (!before || Date.now() - before.asked > ASK_MS) {
      if (before) before.asked = Date.now();
      load(job, stream).then((found) => {
        told.set(key, { found, asked: Date.now(), atEnd: before ? before.atEnd : true });
        show(found);
      }, (error) => text.replaceChildren(document.createTextNode(clean(error.message))));
    }
    return [h("h3", {}, "Output"), h("div", { class: "row" }, choose("out"), choose("err"),
      ids.length > 1 && h("select", { "aria-label": "Job", "data-key": "job", onchange: (event) => { chosen.job = event.target.value; redraw(); } },
        ids.map((id) => h("option", { value: id, selected: id === job }, id))), about), text];
  }
  function load(job, stream) {
    if (!file) return get("output", { job, stream });
    const there = file.outputs[job];
    return Promise.resolve(there ? there[stream] : { text: "", note: "this file does not hold it" });
  }

  // --- curves ---

  function metrics(view, curves) {
    if (!curves.curves.length) return null;
    const groups = [...new Set(curves.curves.map((curve) => stem(curve.stage)))];
    const wanted = groups.includes(chosen.metrics) ? chosen.metrics : null;
    const own = curves.curves.filter((curve) => !wanted || stem(curve.stage) === wanted);
    const several = new Set(own.map((curve) => `${curve.stage} ${curve.metric}`)).size < own.length;
    return h("section", { class: "card" }, h("h2", {}, "Metrics by epoch"),
      groups.length > 1 && h("div", { class: "row" }, h("label", {}, "of ", h("select", { "data-key": "metrics",
        onchange: (event) => { chosen.metrics = event.target.value; redraw(); } },
      h("option", { value: "" }, "all stages"), groups.map((one) => h("option", { value: one, selected: one === wanted }, one))))),
      charts(own, (curve) => (several ? `${curve.stage} ${curve.process}` : curve.stage)),
      curves.left_out > 0 && h("p", { class: "soft" }, `${curves.left_out} more curves: condorctl results --metrics`));
  }

  function charts(curves, label) {
    const byMetric = new Map();
    for (const curve of curves) byMetric.set(curve.metric, [...(byMetric.get(curve.metric) || []), curve]);
    return h("div", { class: "charts" }, [...byMetric].slice(0, 24).map(([metric, own]) => chart(metric, own, label)));
  }

  function chart(metric, curves, label) {
    const W = 360, H = 180, right = 8, top = 8, bottom = 24;
    const finite = (value) => typeof value === "number";
    const values = curves.flatMap((curve) => curve.values.filter(finite));
    const epochs = curves.flatMap((curve) => curve.epochs);
    const caption = h("figcaption", {}, name(metric));
    if (!values.length) return h("figure", {}, caption, h("p", { class: "soft" }, "no finite value"));
    const low = (list) => list.reduce((a, b) => Math.min(a, b), Infinity), high = (list) => list.reduce((a, b) => Math.max(a, b), -Infinity);
    let [y0, y1] = [low(values), high(values)];
    const [x0, x1] = [low(epochs), high(epochs)];
    if (y0 === y1) { const pad = Math.abs(y0) * 0.1 || 1; y0 -= pad; y1 += pad; }
    // Each is scaled before it is subtracted: a difference may be beyond what a number holds.
    const share = (value, from, to) => (to === from ? 0.5 : (value / 2 - from / 2) / (to / 2 - from / 2));
    const at = (part) => y0 * (1 - part) + y1 * part;
    const marks = [0, 1 / 3, 2 / 3, 1].map((part) => [at(part), number(at(part), 3)]);
    const left = 12 + 6.5 * high([4, ...marks.map(([, words]) => words.length)]);
    const x = (epoch) => left + share(epoch, x0, x1) * (W - left - right);
    const y = (value) => H - bottom - share(value, y0, y1) * (H - top - bottom);
    const lines = marks.map(([value, words]) => [
      s("line", { class: "grid", x1: left, x2: W - right, y1: y(value), y2: y(value) }),
      s("text", { class: "soft", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, words)]);
    const drawn = curves.map((curve, index) => {
      const parts = [], colour = `c${index % 8}`, dash = ["", "6 3", "2 3", "8 3 2 3"][Math.floor(index / 8) % 4];
      let part = [];
      curve.epochs.forEach((epoch, i) => {
        if (finite(curve.values[i])) part.push(`${x(epoch).toFixed(1)} ${y(curve.values[i]).toFixed(1)}`);
        else if (part.length) { parts.push(part); part = []; }
      });
      if (part.length) parts.push(part);
      return s("g", {}, s("title", {}, `${label(curve)}: ${number(curve.values.at(-1))}`),
        parts.map((points) => (points.length > 1
          ? s("path", { class: `line ${colour}`, "stroke-dasharray": dash || null, d: `M${points.join("L")}` })
          : s("circle", { class: `dot ${colour}`, cx: points[0].split(" ")[0], cy: points[0].split(" ")[1], r: 3 }))));
    });
    const legend = h("ul", { class: "legend" }, curves.map((curve, index) => h("li", {},
      s("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, s("path", { class: `line c${index % 8}`, "stroke-dasharray": ["", "6 3", "2 3", "8 3 2 3"][Math.floor(index / 8) % 4] || null, d: "M0 4H22" })),
      name(label(curve)), " ", h("span", { class: "soft" }, number(curve.values.at(-1))))));
    const words = `${metric} by epoch ${x0} to ${x1}: ${curves.length} curves between ${number(y0)} and ${number(y1)}`;
    return h("figure", {}, caption,
      s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": clean(words) }, lines,
        s("g", { class: curves.length > MOST_LEGEND ? "many" : null }, drawn),
        s("text", { class: "soft", x: left, y: H - 6 }, x1 === x0 ? "" : number(x0)),
        s("text", { class: "soft", x: (W + left - right) / 2, y: H - 6, "text-anchor": "middle" }, x1 === x0 ? `epoch ${number(x0)}` : "epoch"),
        s("text", { class: "soft", x: W - right, y: H - 6, "text-anchor": "end" }, x1 === x0 ? "" : number(x1))),
      curves.length > MOST_LEGEND ? h("details", { "data-key": `legend ${metric}` }, h("summary", {}, `${curves.length} curves`), legend) : legend);
  }

  // --- results and cost ---

  function results(found) {
    if (!found.rows.length && !found.tables.length) return null;
    const mean = (cell) => (!cell.n ? "–" : `${number(cell.mean)}${cell.n > 1 ? ` ± ${number(cell.sd, 3)} (${cell.n})` : ""}`);
    const tables = found.tables.map((one) => {
      const headings = Object.keys(one.columns);
      const referred = headings.filter((key) => one.rows.some((row) => row.cells[key].reference !== null));
      const columns = [["", ""], ...headings.flatMap((key) => [[`${key}${one.columns[key].unit && !key.includes("%") ? " (%)" : ""}`, "n"],
        ...(referred.includes(key) ? [["ref.", "n soft"]] : [])])];
      const rows = one.rows.map((row) => [name(row.label), ...headings.flatMap((key) => [mean(row.cells[key]),
        ...(referred.includes(key) ? [number(row.cells[key].reference)] : [])])]);
      return [h("h3", {}, one.title), table(one.title, columns, rows), one.reference && h("p", { class: "soft" }, "ref.: ", one.reference)];
    });
    const keys = [...new Set(found.rows.flatMap((row) => Object.keys(row)))].filter((key) => key !== "run" && key !== "stage").slice(0, 40);
    const shownAs = (value) => {
      const words = typeof value === "object" && value !== null ? JSON.stringify(value) : number(value);
      return h("bdi", {}, words.length > 120 ? `${words.slice(0, 119)}…` : words);
    };
    const columns = [["stage", ""], ...keys.map((key) => [key, found.rows.some((row) => typeof row[key] === "number") ? "n" : ""])];
    const rows = () => [table("All rows", columns, found.rows.map((row) => [name(row.stage), ...keys.map((key) => (row[key] === undefined ? "" : shownAs(row[key])))])),
      found.total > found.rows.length && h("p", { class: "soft" }, `${found.rows.length} of ${found.total} rows: condorctl results --csv has all`)];
    return h("section", { class: "card" }, h("h2", {}, "Results"), tables,
      found.rows.length > 0 && (tables.length ? h("details", { "data-key": "rows" }, h("summary", {}, `All rows (${found.total})`), rows()) : rows()));
  }

  function costs(view) {
    const total = view.cost;
    if (!total.cpu_h.total && !total.gpu_h.total && !total.saved.cpu_h && !total.queue_s) return null;
    const gpus = total.gpu_h.total > 0;
    const hours = (cost) => KINDS.filter((kind) => total.cpu_h[kind] > 0 || total.gpu_h[kind] > 0 || kind === "useful")
      .flatMap((kind) => [number(cost.cpu_h[kind], 3), ...(gpus ? [number(cost.gpu_h[kind], 3)] : [])]);
    const kinds = KINDS.filter((kind) => total.cpu_h[kind] > 0 || total.gpu_h[kind] > 0 || kind === "useful");
    const columns = [["stage", ""], ...kinds.flatMap((kind) => [[`${kind}, CPU h`, "n"], ...(gpus ? [[`${kind}, GPU h`, "n"]] : [])]), ["waited", "n"]];
    const sums = new Map();
    for (const stage of view.stages) {
      const cost = view.costs[stage.stage];
      if (cost) sums.set(stage.stage, cost);
    }
    const most = [...sums].sort((a, b) => b[1].cpu_h.total - a[1].cpu_h.total).slice(0, 12).map(([key]) => key);
    const rows = [["all", ...hours(total), duration(total.queue_s)],
      ...[...sums].filter(([key]) => most.includes(key)).map(([key, cost]) => [name(key), ...hours(cost), duration(cost.queue_s)])];
    return h("section", { class: "card" }, h("h2", {}, "Cost"),
      facts([["CPU h", number(total.cpu_h.total, 3)], ["GPU h", gpus ? number(total.gpu_h.total, 3) : null],
        ["saved by reuse", total.saved.cpu_h ? `${number(total.saved.cpu_h, 3)} CPU h` : null],
        ["CPU used", total.cpu_efficiency === null ? null : `${number(total.cpu_efficiency * 100, 3)} %`],
        ["peak memory", total.memory_peak_mb === null ? null : `${number(total.memory_peak_mb, 3)} MB`],
        ["held", total.held_s ? duration(total.held_s) : null]]),
      h("h3", {}, sums.size > 12 ? "The 12 dearest stages" : "By stage"), table("Cost by stage", columns, rows));
  }

  // --- asking ---

  async function get(what, words = {}) {
    const answer = await fetch(`${what}?${new URLSearchParams(words)}`, { cache: "no-store" });
    if (answer.status === 403) throw new Error("this address is not valid any more: open the one that condorctl web prints");
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    return found;
  }
  const where = () => {
    const [, run, stage] = location.hash.split("/");
    const word = (text) => { try { return decodeURIComponent(text || ""); } catch { return ""; } };
    return file ? { run: file.run.run, stage: word(stage) } : { run: word(run), stage: word(stage) };
  };
  const say = (words, kind = "") => {
    const status = document.getElementById("sign");
    status.className = kind;
    if (status.textContent !== words) status.textContent = words;
  };

  let last = null;
  function redraw() {
    const { run, stage } = where();
    if (!last || last.run !== run) return;
    if (run) drawRun(last.view, last.curves, stage); else drawRuns(last.view);
  }
  function crumbs(run) {
    document.title = run ? `${clean(run)} · condorctl` : "condorctl";
    const home = file ? "condorctl" : h("a", { href: "#/" }, "All runs");
    document.getElementById("crumbs").replaceChildren(...(run ? [h("span", {}, home, " / ", name(run))] : [h("span", {}, "condorctl")]));
  }
  async function look(fresh) {
    clearTimeout(timer);
    const mine = ++turn, { run } = where(), began = Date.now();
    if (fresh) { crumbs(run); if (!last || last.run !== run) { main.replaceChildren(); shown.clear(); } }
    let pause = POLL_MS;
    try {
      const [view, curves] = file ? [file.run, file.curves]
        : run ? await Promise.all([get("run", { run }), get("curves", { run })]) : [await get("runs"), null];
      if (mine !== turn) return;
      last = { run, view, curves };
      // Who marks text to copy it keeps it.
      if (fresh || getSelection().isCollapsed) redraw();
      say(file ? `as it was on ${moment(view.now)}` : "");
      const going = run ? !view.finished : view.runs.some((one) => !one.finished);
      pause = going ? POLL_MS : POLL_ENDED_MS;
    } catch (error) {
      if (mine !== turn) return;
      const away = error instanceof TypeError;
      say(away ? "condorctl web does not answer; this is what it said last" : clean(error.message), "bad");
    }
    if (!file) timer = setTimeout(look, document.hidden ? POLL_ENDED_MS : Math.max(pause, 10 * (Date.now() - began)));
  }
  async function go() {
    chosen.job = null;
    await look(true);
    if (where().stage) document.getElementById("s-stage")?.scrollIntoView({ block: "start" });
  }
  window.addEventListener("hashchange", (event) => {
    if (location.hash === "#main") { main.focus(); history.replaceState(null, "", event.oldURL); return; }
    const { run, stage } = where();
    if (last && last.run === run) {
      chosen.job = null;
      redraw();
      if (stage) document.getElementById("s-stage")?.scrollIntoView({ block: "start" });
    } else go();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !file) look(); });
  let wasNarrow = narrow();
  window.addEventListener("resize", () => { if (narrow() !== wasNarrow) { wasNarrow = narrow(); redraw(); } });
  go();
})();
