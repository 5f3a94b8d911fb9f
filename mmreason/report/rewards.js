/* One card a reward: its values early and late, groups without spread, failed calls; then how rewards go together. */
(function (mmreason) {
  "use strict";
  const { el, svg, show } = mmreason.dom;

  const WIDTH = 340, HEIGHT = 150, LEFT = 44, RIGHT = 10, TOP = 10, BOTTOM = 22, NONE = 40;
  const PARTS = ["early", "late"];

  const MEANINGS = [
    ["Values", "share of completions at each value, in the first and in the last quarter of the steps: a shift to the right is learning, and a new peak is worth a look at its completions."],
    ["None", "share of completions that the reward does not apply to or failed on; they count as missing, never as 0."],
    ["Groups without spread", "share of groups in which this reward is the same for every completion: there it moves nothing."],
    ["Failed calls", "share of calls that raised, ran out of time or returned no valid number, by kind."],
    ["Rewards together", "Pearson's correlation: +1 pays for the same completions, −1 pulls the other way, 0 is unrelated."],
  ];

  /** A share for people; tiny ones do not become 0. */
  function percent(share) {
    if (share === null || share === undefined) return "–";
    const value = share * 100;
    return (value !== 0 && value < 0.095 ? "< 0.1" : value < 9.95 && value % 1 ? value.toFixed(1) : value.toFixed(0)) + " %";
  }

  function span(period) {
    const [first, last] = [Math.ceil(period[0]), Math.floor(period[1])];
    return first >= last ? "step " + last : "steps " + first + "–" + last;
  }

  /** Bars as [{label, from, to, shares: {early, late}}] in units of the plot's width, the bar of None among them. */
  function bars(counted) {
    const few = Boolean(counted.values);
    const edges = few ? counted.values : counted.edges;
    const number = few ? edges.length : edges.length - 1;
    const share = (part, count) => counted[part] ? count(counted[part]) / Math.max(1, counted[part].n + counted[part].missing) : null;
    const none = PARTS.some((part) => counted[part] && counted[part].missing);
    const start = none ? LEFT + NONE : LEFT, wide = number ? (WIDTH - RIGHT - start) / number : 0;
    const made = Array.from({ length: number }, (_, i) => ({
      label: few ? show(edges[i]) : show(edges[i]) + " to " + show(edges[i + 1]),
      from: start + i * wide, to: start + (i + 1) * wide,
      shares: Object.fromEntries(PARTS.map((part) => [part, share(part, (found) => found.bars[i])])),
    }));
    if (none) made.push({ label: "none", none: true, from: LEFT, to: LEFT + NONE - 10,
      shares: Object.fromEntries(PARTS.map((part) => [part, share(part, (found) => found.missing)])) });
    return { made, few, edges, start, wide };
  }

  function histogram(name, counted, told) {
    const { made, few, edges, start, wide } = bars(counted);
    const most = Math.max(0.01, ...made.flatMap((bar) => PARTS.map((part) => bar.shares[part] || 0)));
    const toY = (share) => HEIGHT - BOTTOM - (share / most) * (HEIGHT - TOP - BOTTOM);
    const words = PARTS.filter((part) => counted[part]).map((part) => span(told[part]) + ": mean " + show(counted[part].mean)).join("; ");
    const plot = svg("svg", { viewBox: "0 0 " + WIDTH + " " + HEIGHT, class: "plot histogram", role: "img", "aria-label": "values of " + name + ". " + words });
    for (const share of [most / 2, most]) {
      plot.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: toY(share), y2: toY(share), class: "grid" }),
        svg("text", { x: LEFT - 6, y: toY(share) + 3.5, class: "tick", "text-anchor": "end" }, percent(share)));
    }
    plot.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: toY(0), y2: toY(0), class: "axis" }));
    for (const bar of made) {
      const shown = PARTS.filter((part) => bar.shares[part] !== null);
      const beside = (few || bar.none) && shown.length > 1; // few values stand side by side, bins lie over each other
      const gap = few ? Math.min(6, (bar.to - bar.from) * 0.15) : 0.5;
      const wideness = Math.min((bar.to - bar.from - 2 * gap) / (beside ? 2 : 1), few && !bar.none ? 40 : 400);
      const middle = (bar.from + bar.to) / 2;
      const text = bar.label + ": " + shown.map((part) => percent(bar.shares[part]) + (shown.length > 1 ? " " + part : "")).join(", ");
      plot.append(svg("g", { class: bar.none ? "bar-none" : null }, svg("title", {}, text),
        svg("rect", { x: bar.from, y: TOP, width: bar.to - bar.from, height: HEIGHT - TOP - BOTTOM, class: "catch" }),
        shown.map((part, i) => svg("rect", {
          class: "value " + part, width: wideness, y: toY(bar.shares[part]), height: toY(0) - toY(bar.shares[part]),
          x: beside ? middle + (i - 1) * wideness : middle - wideness / 2,
        }))));
    }
    ticks(plot, { few, edges, start, wide, cut: counted.cut });
    if (start > LEFT) plot.append(svg("text", { x: LEFT + (NONE - 10) / 2, y: HEIGHT - 6, class: "tick", "text-anchor": "middle" }, "none"));
    const keys = PARTS.filter((part) => counted[part]).map((part) => el("span", { class: "key" },
      svg("svg", { viewBox: "0 0 14 10", class: "swatch", "aria-hidden": "true" }, svg("rect", { x: 0, y: 1, width: 14, height: 8, class: "value " + part })),
      counted.early ? span(told[part]) : "all steps", ", mean ", el("b", {}, show(counted[part].mean))));
    return el("figure", { class: "chart" }, el("figcaption", {}, el("strong", {}, "Values"), el("span", { class: "keys" }, keys)), plot);
  }

  function ticks(plot, { few, edges, start, wide, cut }) {
    const mark = (x, text, anchor) => plot.append(svg("text", { x, y: HEIGHT - 6, class: "tick", "text-anchor": anchor || "middle" }, text));
    if (few) {
      const every = Math.ceil(edges.length / 6);
      edges.forEach((value, i) => { if (i % every === 0) mark(start + (i + 0.5) * wide, show(value)); });
      return;
    }
    const last = edges.length - 1, half = Math.round(last / 2);
    mark(start, (cut ? "≤ " : "") + show(edges[0]), "start");
    mark(start + half * wide, show(edges[half]));
    mark(WIDTH - RIGHT, (cut ? "≥ " : "") + show(edges[last]), "end");
  }

  const known = (curve) => curve.y.some((value) => value !== null);

  /** `curve` is counted over the saved rollouts or, without any, logged by the run. */
  function spread(curve, cursor) {
    const title = "Groups without spread";
    if (!known(curve)) return empty(title, "No group has two completions with a value.");
    return mmreason.chart({ title, unit: "share of groups", share: true }, [title], { [title]: curve }, cursor);
  }

  function failed(found, error, cursor) {
    const kinds = Object.entries(found.kinds).sort((a, b) => b[1] - a[1]);
    if (!kinds.length) return empty("Failed calls", "No call has failed.");
    const curves = Object.keys(found.curves);
    const detail = error ? el("details", { class: "more" }, el("summary", {}, "first error"), el("pre", { class: "error", tabindex: "0" }, error)) : null;
    if (!curves.length) {
      const count = (value) => found.is_share ? percent(value) : show(value) + " calls";
      return el("figure", { class: "chart" }, el("figcaption", {}, el("strong", {}, "Failed calls")),
        kinds.map(([kind, value]) => el("p", { class: "hint" }, kind.replaceAll("_", " ") + ": " + count(value))), detail);
    }
    const series = Object.fromEntries(kinds.map(([kind]) => ["/" + kind.replaceAll("_", " "), found.curves[kind]]));
    const figure = mmreason.chart({ title: "Failed calls, share", prefix: "/", percent: true }, Object.keys(series), series, cursor);
    if (detail) figure.append(detail);
    return figure;
  }

  function empty(title, text) {
    return el("figure", { class: "chart quiet" }, el("figcaption", {}, el("strong", {}, title)), el("p", { class: "hint" }, text));
  }

  function card(item, told, cursor) {
    const { counted } = item;
    const chips = [
      item.weight === 0 ? "not trained on" : item.weight === undefined || item.weight === null ? null : "weight " + show(item.weight),
    ].filter(Boolean);
    const stats = [];
    if (counted) {
      const both = counted.early && counted.early.mean !== null && counted.late.mean !== null;
      stats.push(["mean ", both ? show(counted.early.mean) + " → " + show(counted.late.mean) : show(counted.late.mean)],
        ["none ", percent(counted.missing / told.rollouts)],
        ["groups without spread ", percent(counted.without_spread)]);
    }
    if (item.failures && item.failures.is_share) {
      stats.push(["failed ", percent(Object.values(item.failures.kinds).reduce((sum, value) => sum + value, 0))]);
    }
    return el("article", { class: "reward-card" },
      el("header", {}, el("h3", {}, item.name), chips.map((text) => el("span", { class: "chip" }, text)),
        el("span", { class: "stats" }, stats.map(([name, value], i) => [i ? " · " : "", name, el("b", {}, value)]))),
      el("div", { class: "charts" },
        counted && (counted.values || counted.edges).length ? histogram(item.name, counted, told) : empty("Values", counted ? "It has never given a value." : "No saved rollout holds it."),
        counted ? spread(counted.spread, cursor) : item.spread ? spread(item.spread, cursor) : null,
        item.failures ? failed(item.failures, item.error, cursor) : null));
  }

  /** Rewards against each other, and with the length; half a table, since the other half says the same. */
  function matrix(told) {
    const { names } = told.matrix;
    const scopes = [["within", "within groups"], ["all", "over all completions"]];
    const table = el("table", { class: "matrix" });
    const buttons = scopes.map(([scope, text]) => el("button", { type: "button", onclick: () => choose(scope) }, text));
    const hint = el("p", { class: "hint" });
    const order = names.map((_, i) => i).filter((i) => names[i] !== told.length).concat(names.indexOf(told.length));

    function cell(scope, i, j) {
      const r = told.matrix[scope].r[i][j], n = told.matrix[scope].n[i][j];
      const title = names[i] + " and " + names[j] + ": " + (r === null ? "one of them does not vary" : "r = " + r.toFixed(3).replace("-", "−")) + ", n = " + n;
      const node = el("td", { class: r === null ? "still" : r < 0 ? "against" : "along", title },
        r === null ? "–" : r.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−"), el("small", {}, "n " + n.toLocaleString("en")));
      node.style.setProperty("--strength", Math.round(Math.abs(r || 0) * 75) + "%");
      return node;
    }

    function choose(scope) {
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", scopes[i][0] === scope));
      hint.textContent = scope === "within"
        ? "Each completion against the others of its group: what the advantage sees. “–”: one of the two does not vary."
        : "All completions of the run: easy prompts and the progress of training make rewards rise together. “–”: one of the two does not vary.";
      table.replaceChildren(
        el("thead", {}, el("tr", {}, el("td", {}), order.slice(0, -1).map((j) => el("th", { scope: "col" }, names[j])))),
        el("tbody", {}, order.slice(1).map((i, row) => el("tr", {}, el("th", { scope: "row" }, names[i] === told.length ? "completion length" : names[i]),
          order.slice(0, -1).map((j, column) => column <= row ? cell(scope, i, j) : el("td", {}))))));
    }
    choose(told.matrix.within.n.some((row) => row.some((n) => n > 0)) ? "within" : "all");
    return el("div", { class: "together" }, el("header", {}, el("h3", {}, "Rewards together"), el("span", { class: "toggle", role: "group" }, buttons)),
      el("div", { class: "scroll" }, table), hint);
  }

  function watched(series) {
    const found = ["correct", "eval/accuracy"].filter((name) => series[name]);
    return found.length
      ? "“Score up, accuracy down” is watched against " + found.join(" and ") + "."
      : "Nothing in this run says which answers are right, so “score up, accuracy down” is not watched: set reward.correct='exact > 0.5' (with your reward of correctness) or trainer.eval_every_steps.";
  }

  /** Draw the section into `root`; `told` is the page's `rewards`. */
  mmreason.rewards = function (root, told, series, cursor) {
    root.append(
      el("details", { class: "meanings" }, el("summary", {}, "How to read this"),
        el("dl", {}, MEANINGS.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))))),
      el("p", { class: "hint" }, watched(series)),
      ...told.cards.map((item) => card(item, told, cursor)));
    if (told.left_out) root.append(el("p", { class: "hint" }, "Values of further rewards are left out: " + told.left_out + "."));
    if (told.matrix) root.append(matrix(told));
  };
})((window.mmreason = window.mmreason || {}));
