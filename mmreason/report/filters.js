/* Which groups and rollouts are shown, and in which order. */
(function (mmreason) {
  "use strict";
  const { el } = mmreason.dom;

  const CAUSES = [
    ["", "any outcome"], ["format", "format failed"], ["no_box", "no box parsed"], ["no_image", "a box without image"],
    ["box_off", "box off (overlap below 0.5)"], ["wrong", "answer wrong"], ["length", "cut at the length limit"],
    ["budget", "an agent's budget used up"], ["call", "a call of a tool failed"],
  ];
  const ORDERS = {
    "step-up": ["step, first to last", (a, b) => a.step - b.step],
    "step-down": ["step, last to first", (a, b) => b.step - a.step],
    "mean-up": ["mean reward, lowest first", (a, b) => a.mean - b.mean],
    "mean-down": ["mean reward, highest first", (a, b) => b.mean - a.mean],
    "spread-down": ["spread, widest first", (a, b) => b.spread - a.spread],
    "gap-down": ["best minus worst, widest first", (a, b) => b.gap - a.gap],
    "length-down": ["length, longest first", (a, b) => b.length - a.length],
    "length-up": ["length, shortest first", (a, b) => a.length - b.length],
  };
  const EQUAL = 1e-9;

  /** Everything that text search looks at, in lower case, made once per rollout. */
  function haystack(group, rollout) {
    if (rollout.haystack === undefined) {
      group.haystack = group.haystack ||
        [group.id, group.target, ...group.labels, ...group.prompt.map((m) => m.text)].join("\n").toLowerCase();
      const spans = rollout.trajectory ? rollout.trajectory.spans : [];
      rollout.haystack = [rollout.segments, ...spans.map((s) => s.segments || s.parts)].map((found) => found.map((s) => s[1]).join("")).join("\n").toLowerCase();
    }
    return group.haystack + "\n" + rollout.haystack;
  }

  function matches(group, rollout, want) {
    if (want.why && !rollout.why.includes(want.why)) return false;
    if (want.low !== null || want.high !== null) {
      const value = want.part === "" ? rollout.reward
        : Object.prototype.hasOwnProperty.call(rollout.rewards, want.part) ? rollout.rewards[want.part] : null;
      if (value === null) return false;
      if (want.low !== null && value < want.low - EQUAL) return false;
      if (want.high !== null && value > want.high + EQUAL) return false;
    }
    return !want.query || haystack(group, rollout).includes(want.query);
  }

  /** The groups that `want` leaves, as [{group, rollouts}], ordered; `rollouts` are the matching ones. */
  function select(groups, want) {
    const found = [];
    for (const group of groups) {
      if (want.from !== null && !(group.step >= want.from)) continue;
      if (want.to !== null && !(group.step <= want.to)) continue;
      if (want.dataset && group.dataset !== want.dataset) continue;
      if (want.spreadOnly && !(group.spread > EQUAL)) continue;
      const rollouts = group.rollouts.filter((rollout) => matches(group, rollout, want));
      if (rollouts.length) found.push({ group, rollouts });
    }
    const order = ORDERS[want.order][1];
    return found.sort((a, b) => order(a.group, b.group) || a.group.step - b.group.step);
  }

  /** The form. Calls `changed(want)` at once and after every change. */
  function form(groups, changed) {
    const parts = [...new Set(groups.flatMap((g) => g.rollouts.flatMap((r) => Object.keys(r.rewards))))].sort();
    const datasets = [...new Set(groups.map((g) => g.dataset))].filter(Boolean).sort();
    const option = ([value, text]) => el("option", { value }, text);
    const field = (id, text, input) => el("label", { class: "field", for: id }, el("span", {}, text), input);
    const together = (text, ...inputs) => el("div", { class: "field", role: "group", "aria-label": text },
      el("span", {}, text), el("span", { class: "pair" }, inputs));
    const pick = (id, choices) => el("select", { id }, choices.map(option));
    const num = (id, text, name) => el("input", { id, type: "number", step: "any", placeholder: text, "aria-label": name });
    const controls = {
      query: el("input", { id: "f-query", type: "search", placeholder: "words in prompt or completion", autocomplete: "off" }),
      from: num("f-from", "from", "first step"), to: num("f-to", "to", "last step"),
      part: pick("f-part", [["", "total"], ...parts.map((name) => [name, name])]),
      low: num("f-low", "min", "least reward"), high: num("f-high", "max", "greatest reward"),
      why: pick("f-why", CAUSES),
      dataset: pick("f-dataset", [["", "all data"], ...datasets.map((name) => [name, name])]),
      order: pick("f-order", Object.entries(ORDERS).map(([key, [text]]) => [key, text])),
      spreadOnly: el("input", { id: "f-spread", type: "checkbox" }),
    };
    const number = (input) => (input.value === "" || !Number.isFinite(input.valueAsNumber) ? null : input.valueAsNumber);
    const read = () => ({
      query: controls.query.value.trim().toLowerCase(),
      from: number(controls.from), to: number(controls.to),
      part: controls.part.value, low: number(controls.low), high: number(controls.high),
      why: controls.why.value, dataset: controls.dataset.value,
      order: controls.order.value, spreadOnly: controls.spreadOnly.checked,
    });
    let timer = 0;
    const later = () => { clearTimeout(timer); timer = setTimeout(() => changed(read()), 120); };
    const node = el("form", { class: "filters", "aria-label": "Filter and sort rollouts",
      onsubmit: (event) => event.preventDefault(), oninput: later,
      onreset: () => setTimeout(() => changed(read()), 0) },
      field("f-query", "Search", controls.query),
      together("Steps", controls.from, controls.to),
      together("Reward", controls.part, controls.low, controls.high),
      field("f-why", "Why 0", controls.why),
      datasets.length > 1 ? field("f-dataset", "Data", controls.dataset) : null,
      field("f-order", "Sort by", controls.order),
      el("label", { class: "check", for: "f-spread" }, controls.spreadOnly, "only groups with spread"),
      el("button", { type: "reset" }, "Reset"));
    return { node, start: () => changed(read()) };
  }

  mmreason.filters = { form, select };
})((window.mmreason = window.mmreason || {}));
