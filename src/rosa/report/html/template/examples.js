// Examples: filter, compare two methods, page. Text from the study is only ever set as textContent.
"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  const PER_PAGE = 20;
  const LONG = 900; // characters of a prompt that is cut until asked for
  const EVERY = "every";
  const MOST = "most";

  // ---- data ----------------------------------------------------------------------------------

  async function read() {
    const element = document.getElementById("answers");
    const text = element.textContent;
    if (element.type === "application/json") return JSON.parse(text);
    if (!("DecompressionStream" in window)) {
      throw new Error("this browser cannot unpack them; any from 2023 or later can");
    }
    const letters = atob(text.trim());
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  // Every run's answers by row: runOf(group, method, seed).answers[task].at(row) is a place or -1.
  function index(data) {
    const runs = new Map();
    for (const run of data.runs) {
      for (const answers of Object.values(run.answers)) {
        const places = answers.rows && new Map(answers.rows.map((row, place) => [row, place]));
        answers.at = places ? (row) => places.get(row) ?? -1 : (row) => row;
      }
      runs.set(`${run.group}/${run.method}/${run.seed}`, run);
    }
    return (group, method, seed) => runs.get(`${group}/${method}/${seed}`);
  }

  // ---- small helpers -------------------------------------------------------------------------

  const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) =>
    c === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0)));

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (value === true) element.setAttribute(key, "");
      else if (value !== false && value !== null) element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const count = (n) => n.toLocaleString("en");
  const debounce = (act, wait) => {
    let timer;
    return () => { clearTimeout(timer); timer = setTimeout(act, wait); };
  };

  // ---- the viewer ----------------------------------------------------------------------------

  function start(data) {
    const runOf = index(data);
    const titles = data.methods.map((method) => method.title);
    const state = { group: 0, task: "", a: 0, b: -1, seed: "0", show: "all", query: "", page: 0 };

    const seedsOf = () => (/^\d+$/.test(state.seed) ? [Number(state.seed)] : data.seeds.map((_, i) => i));

    // One method's answers to one question: [{seed, right, prediction, response}].
    function answers(method, task, row, seeds) {
      const texts = data.tasks[task].texts;
      const found = [];
      for (const seed of seeds) {
        const packed = runOf(state.group, method, seed)?.answers[task];
        const place = packed ? packed.at(row) : -1;
        if (place < 0) continue;
        const response = packed.response ? texts[packed.response[place]] : null;
        const prediction = packed.prediction[place] < 0 ? null : texts[packed.prediction[place]];
        found.push({ seed, right: packed.right[place] === "1", prediction, response });
      }
      return found;
    }

    // true, false, or null where the seeds do not agree, or there is no answer.
    function verdict(method, task, row, seeds) {
      let right = 0;
      let asked = 0;
      for (const seed of seeds) {
        const packed = runOf(state.group, method, seed)?.answers[task];
        const place = packed ? packed.at(row) : -1;
        if (place < 0) continue;
        asked += 1;
        right += packed.right[place] === "1";
      }
      if (!asked) return null;
      if (state.seed === MOST) return right * 2 === asked ? null : right * 2 > asked;
      return right === asked ? true : right === 0 ? false : null;
    }

    const tasksOfGroup = () => {
      const found = new Set();
      for (const run of data.runs) {
        if (run.group === state.group) Object.keys(run.answers).forEach((task) => found.add(Number(task)));
      }
      return [...found].sort((x, y) => x - y);
    };
    const methodsOfGroup = () => {
      const found = new Set(data.runs.filter((run) => run.group === state.group).map((run) => run.method));
      return [...found].sort((x, y) => x - y);
    };

    // The questions that any run of the group was asked.
    function rowsOf(task) {
      const asked = data.runs.filter((run) => run.group === state.group && run.answers[task]);
      const every = asked.some((run) => !run.answers[task].rows);
      if (every) return data.tasks[task].prompt.keys();
      return [...new Set(asked.flatMap((run) => run.answers[task].rows))].sort((x, y) => x - y);
    }

    function matches(task, row, needle, seeds) {
      const { index: numbers, prompt, label } = data.tasks[task];
      if (prompt[row].toLowerCase().includes(needle) || label[row].toLowerCase().includes(needle)) return true;
      if (String(numbers[row]) === needle) return true;
      const methods = state.b >= 0 ? [state.a, state.b] : [state.a];
      return methods.some((method) =>
        answers(method, task, row, seeds).some((answer) => answer.response?.toLowerCase().includes(needle)));
    }

    // Which kind a question is of, given the verdicts of A and B.
    function kindOf(a, b) {
      if (state.b < 0) return a === null ? "other" : a ? "right" : "wrong";
      if (a === null || b === null) return "other";
      return a ? (b ? "both-right" : "a-only") : b ? "b-only" : "both-wrong";
    }

    function collect() {
      const seeds = seedsOf();
      const needle = state.query.trim().toLowerCase();
      const kinds = { all: [] };
      const wanted = state.task === "" ? tasksOfGroup() : [Number(state.task)];
      for (const task of wanted) {
        for (const row of rowsOf(task)) {
          if (needle && !matches(task, row, needle, seeds)) continue;
          const a = verdict(state.a, task, row, seeds);
          const b = state.b < 0 ? null : verdict(state.b, task, row, seeds);
          kinds.all.push([task, row]);
          (kinds[kindOf(a, b)] ??= []).push([task, row]);
        }
      }
      return kinds;
    }

    // ---- controls ----

    const controls = {};

    function select(key, label, options) {
      const element = make("select", { id: `filter-${key}`, onchange: () => change(key, element.value) });
      const fill = () => {
        element.replaceChildren(...options().map(([value, text]) => make("option", { value }, visible(text))));
        element.value = String(state[key]);
      };
      controls[key] = { element, fill };
      fill();
      return make("label", {}, label, element);
    }

    function change(key, value) {
      state[key] = typeof state[key] === "number" ? Number(value) : value;
      if (key === "group") {
        const tasks = tasksOfGroup();
        if (state.task !== "" && !tasks.includes(Number(state.task))) state.task = "";
        settleMethods();
        ["task", "a", "b"].forEach((name) => controls[name].fill());
      }
      state.page = 0;
      update();
      remember();
    }

    function settleMethods() {
      const methods = methodsOfGroup();
      const first = (group) => methods.find((method) => data.methods[method].group === group);
      if (!methods.includes(state.a)) state.a = first("ours") ?? methods[0];
      if (state.b >= 0 && !methods.includes(state.b)) state.b = -1;
    }

    const groupName = ({ model, train_set: set }) => `${model}, ${set}`;
    const methodOptions = () => methodsOfGroup().map((method) => [method, titles[method]]);
    const seedOptions = () => {
      const each = data.seeds.map((seed, i) => [i, `seed ${seed}`]);
      return data.seeds.length < 2 ? each : [...each, [EVERY, "every seed"], [MOST, "most seeds"]];
    };
    const search = make("input", {
      type: "search", id: "filter-query", placeholder: "prompt, response or number", autocomplete: "off",
    });
    search.addEventListener("input", debounce(() => change("query", search.value), 150));

    const chips = make("div", { class: "chips", role: "group", "aria-label": "Verdicts" });
    const list = make("div", { id: "list" });
    const status = make("p", { "aria-live": "polite", id: "found" });
    const turn = (by) => () => {
      state.page += by;
      update();
      remember();
      chips.scrollIntoView({ block: "start" });
    };
    const back = make("button", { type: "button", id: "back", onclick: turn(-1) }, "← Back");
    const next = make("button", { type: "button", id: "next", onclick: turn(1) }, "Next →");

    function showChips(kinds) {
      const [a, b] = [titles[state.a], titles[state.b]];
      const names = state.b < 0
        ? [["all", "all"], ["right", `${a} right`], ["wrong", `${a} wrong`]]
        : [["all", "all"], ["a-only", `${a} right, ${b} wrong`], ["b-only", `${a} wrong, ${b} right`],
          ["both-right", "both right"], ["both-wrong", "both wrong"]];
      if (kinds.other) names.push(["other", "seeds disagree or not evaluated"]);
      if (!names.some(([kind]) => kind === state.show)) state.show = "all";
      const had = chips.contains(document.activeElement);
      chips.replaceChildren(...names.map(([kind, text]) => make("button", {
        type: "button", "data-show": kind, "aria-pressed": String(state.show === kind),
        onclick: () => change("show", kind),
      }, visible(text), make("span", { class: "n" }, count(kinds[kind]?.length ?? 0)))));
      if (had) chips.querySelector('[aria-pressed="true"]').focus();
    }

    function update() {
      const kinds = collect();
      showChips(kinds);
      const found = kinds[state.show] ?? [];
      const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
      state.page = Math.min(Math.max(state.page, 0), pages - 1);
      const from = state.page * PER_PAGE;
      const shown = found.slice(from, from + PER_PAGE);
      status.textContent = found.length
        ? `${count(from + 1)}–${count(from + shown.length)} of ${count(found.length)}` : "0 of 0";
      back.disabled = state.page === 0;
      next.disabled = state.page === pages - 1;
      list.replaceChildren(...shown.map(([task, row]) => card(task, row)));
      if (!found.length) list.append(make("p", { class: "empty" }, "No example matches."));
    }

    // ---- one question ----

    function card(task, row) {
      const { title, index: numbers, prefix, prompt, suffix, label, name } = data.tasks[task];
      const text = make("pre", { class: "prompt" }, visible(prompt[row].trim()));
      const heading = make("h3", {}, `${visible(title)} #${numbers[row]}`,
        make("span", { class: "quiet" }, "right answer: "), make("bdi", {}, visible(label[row])));
      const article = make("article", { class: "example", "data-task": name, "data-index": numbers[row] }, heading, text);
      const whole = prefix + prompt[row] + suffix;
      const isLong = prompt[row].length > LONG;
      if (isLong) text.classList.add("long");
      if (isLong || prefix || suffix) {
        const more = make("button", { type: "button", class: "link", "aria-expanded": "false" }, "whole prompt");
        more.addEventListener("click", () => {
          const open = text.classList.toggle("open");
          text.textContent = visible(open ? whole : prompt[row].trim());
          more.textContent = open ? "less" : "whole prompt";
          more.setAttribute("aria-expanded", String(open));
        });
        article.append(more);
      }
      const sides = make("div", { class: "sides" }, side(state.a, task, row, seedsOf()));
      if (state.b >= 0) sides.append(side(state.b, task, row, seedsOf()));
      article.append(sides, everyone(task, row));
      return article;
    }

    // One method's answers, the same ones said once.
    function side(method, task, row, seeds) {
      const box = make("div", { class: "side" }, make("h4", {}, visible(titles[method])));
      const alike = new Map();
      for (const answer of answers(method, task, row, seeds)) {
        const key = JSON.stringify([answer.right, answer.prediction, answer.response]);
        if (!alike.has(key)) alike.set(key, { ...answer, seeds: [] });
        alike.get(key).seeds.push(data.seeds[answer.seed]);
      }
      if (!alike.size) box.append(make("p", { class: "verdict quiet" }, "not evaluated"));
      for (const answer of alike.values()) box.append(said(answer));
      return box;
    }

    function said({ right, prediction, response, seeds }) {
      const read = prediction === null ? [", no answer found in it"] : [", read as ", make("bdi", {}, visible(prediction))];
      const verdictLine = make("div", { class: `verdict ${right ? "is-right" : "is-wrong"}` },
        make("b", {}, right ? "✓ right" : "✗ wrong"), ...read,
        make("span", { class: "quiet" }, ` · seed${seeds.length > 1 ? "s" : ""} ${seeds.join(", ")}`));
      const text = response === null
        ? make("p", { class: "verdict quiet" }, "response not kept on this page")
        : response === "" ? make("p", { class: "verdict quiet" }, "(empty)") : make("pre", {}, visible(response));
      return make("div", { class: "said" }, verdictLine, text);
    }

    function everyone(task, row) {
      const all = [...data.seeds.keys()];
      const methods = methodsOfGroup();
      let [right, asked] = [0, 0];
      for (const method of methods) {
        for (const answer of answers(method, task, row, all)) { asked += 1; right += answer.right; }
      }
      const box = make("div");
      const fold = make("details", { class: "all" },
        make("summary", {}, `All methods: ${right} of ${asked} runs right`), box);
      fold.addEventListener("toggle", () => {
        if (fold.open && !box.firstChild) box.append(...methods.map((method) => side(method, task, row, all)));
      });
      return fold;
    }

    // ---- the address says what is shown, so that it can be passed on ----

    const nameOf = (method) => data.methods[method]?.name ?? "";

    function remember() {
      const words = new URLSearchParams({
        group: state.group, task: data.tasks[state.task]?.name ?? "", a: nameOf(state.a), b: nameOf(state.b),
        seed: data.seeds[state.seed] ?? state.seed, show: state.show, query: state.query, page: state.page + 1,
      });
      try { history.replaceState(null, "", `#examples?${words}`); } catch { /* not allowed here */ }
    }

    function recall() {
      const [section, words] = location.hash.split("?");
      if (section !== "#examples" || !words) return;
      const said = new URLSearchParams(words);
      const find = (list, word) => list.findIndex((item) => item.name === said.get(word));
      const group = Number(said.get("group"));
      if (data.groups[group]) state.group = group;
      const task = find(data.tasks, "task");
      state.task = tasksOfGroup().includes(task) ? String(task) : "";
      if (find(data.methods, "a") >= 0) state.a = find(data.methods, "a");
      state.b = find(data.methods, "b");
      const seed = data.seeds.findIndex((value) => String(value) === said.get("seed"));
      state.seed = [EVERY, MOST].includes(said.get("seed")) ? said.get("seed") : String(Math.max(seed, 0));
      state.show = said.get("show") ?? "all";
      state.query = said.get("query") ?? "";
      state.page = Math.max(Number(said.get("page")) - 1 || 0, 0);
    }

    // ---- set up ----

    const methods = methodsOfGroup();
    const ours = methods.find((method) => data.methods[method].group === "ours") ?? methods[0];
    state.a = ours;
    const score = (method) => data.runs.filter((run) => run.group === state.group && run.method === method)
      .flatMap((run) => Object.values(run.answers).map(({ right }) => right.replaceAll("0", "").length / right.length))
      .reduce((sum, share, _, all) => sum + share / all.length, 0);
    const others = methods.filter((method) => method !== ours && data.methods[method].group === "baseline");
    state.b = others.sort((x, y) => score(y) - score(x))[0] ?? -1; // the best baseline
    recall();
    settleMethods();
    search.value = state.query;
    const filters = make("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() });
    if (data.groups.length > 1) {
      filters.append(select("group", "Model, training set", () => data.groups.map((group, i) => [i, groupName(group)])));
    }
    filters.append(
      select("task", "Task", () => [["", "all tasks"], ...tasksOfGroup().map((task) => [task, data.tasks[task].title])]),
      select("a", "Method A", methodOptions),
      select("b", "Method B", () => [[-1, "none"], ...methodOptions()]),
      select("seed", "Seed", seedOptions),
      make("label", {}, "Search", search),
    );
    viewer.replaceChildren(filters, chips, make("div", { class: "pages" }, status, back, next), list);
    update();
    viewer.dataset.ready = "true";
  }

  // Unpacked when the reader comes near: the rest of the page does not wait for it.
  async function open() {
    viewer.textContent = "Unpacking …";
    try {
      start(await read());
      if (location.hash.startsWith("#examples?")) viewer.parentElement.scrollIntoView();
    } catch (error) {
      viewer.textContent = `The examples could not be shown: ${error.message}`;
      throw error;
    }
  }

  if (location.hash.startsWith("#examples")) open();
  else {
    const watch = new IntersectionObserver((seen) => {
      if (seen.some((entry) => entry.isIntersecting)) { watch.disconnect(); open(); }
    }, { rootMargin: "800px" });
    watch.observe(viewer);
  }
})();
