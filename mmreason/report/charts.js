/* Curves: small multiples in SVG with one shared cursor. */
(function (mmreason) {
  "use strict";
  const { el, svg, show } = mmreason.dom;

  const WIDTH = 340, HEIGHT = 150, LEFT = 44, RIGHT = 10, TOP = 10, BOTTOM = 22;

  /** Panels name their series by `keys` or `prefix`, and by how their keys begin the alarms that are marked on them. */
  const SCORES = ["score up"];
  const PANELS = [
    { title: "Reward", keys: ["reward"], band: "reward_std", note: "band: spread of the reward", alarms: SCORES },
    { title: "Reward parts", prefix: "rewards/", alarms: SCORES },
    { title: "Held-out scores", prefix: "eval/", dots: true, alarms: SCORES },
    { title: "Correct answers", keys: ["correct"], unit: "share of completions", alarms: SCORES },
    { title: "Completion length", keys: ["completion_length"], unit: "tokens" },
    { title: "Groups without spread", keys: ["zero_variance_groups"], note: "share of groups whose rewards are all equal: they teach nothing" },
    { title: "Entropy", keys: ["entropy"], unit: "nats per token" },
    { title: "KL to the reference", keys: ["kl"] },
    { title: "Cut at the length limit", keys: ["truncated"], note: "share of completions" },
    { title: "Answers that do not parse", keys: ["parse_failures"], note: "share of completions" },
    { title: "Gradient norm", keys: ["grad_norm"] },
    { title: "Seconds per step", keys: ["step_seconds"] },
    { title: "Seconds by stage", prefix: "seconds/" },
    { title: "Loss", keys: ["loss"] },
  ];

  /** Round tick values within [low, high], each with its text: all with as many decimals as their distance needs. */
  function ticks(low, high) {
    const raw = (high - low) / 3 || 1;
    const unit = Math.pow(10, Math.floor(Math.log10(raw)));
    const step = [1, 2, 5, 10].map((k) => k * unit).find((s) => s >= raw);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const text = (value) => decimals > 6 || high >= 1e6 ? show(value) : value.toFixed(decimals).replace(/^-0(\.0*)?$/, "0").replace("-", "−");
    return found.map((value) => [value, text(value)]);
  }

  /** Mean over a window of neighbours, so that a trend shows in a noisy curve. */
  function smooth(values, radius) {
    return values.map((value, index) => {
      if (value === null) return null;
      const near = values.slice(Math.max(0, index - radius), index + radius + 1).filter((v) => v !== null);
      return near.reduce((sum, v) => sum + v, 0) / near.length;
    });
  }

  /** Whether a value has no neighbour that a line could lead to. */
  function alone(values, index) {
    return [values[index - 1], values[index + 1]].every((value) => value === null || value === undefined);
  }

  function path(xs, ys, toX, toY) {
    let text = "", open = false;
    xs.forEach((x, i) => {
      if (ys[i] === null) { open = false; return; }
      text += (open ? "L" : "M") + toX(x).toFixed(1) + " " + toY(ys[i]).toFixed(1);
      open = true;
    });
    return text;
  }

  function describe(name, curve) {
    const known = curve.x.map((x, i) => [x, curve.y[i]]).filter((point) => point[1] !== null);
    const first = known[0], last = known[known.length - 1];
    return name + ": " + show(first[1]) + " at step " + first[0] + ", " + show(last[1]) + " at step " + last[0];
  }

  function bounds(curves, band) {
    let low = Infinity, high = -Infinity, start = Infinity, end = -Infinity;
    for (const curve of curves) {
      curve.x.forEach((x, i) => {
        const y = curve.y[i];
        if (y === null) return;
        const margin = (band && band.get(x)) || 0;
        low = Math.min(low, y - margin); high = Math.max(high, y + margin);
        start = Math.min(start, x); end = Math.max(end, x);
      });
    }
    if (low >= 0 && low < high * 0.6) low = 0;
    if (high <= 1 && high > 0.75 && low >= 0) high = 1;
    if (low === high) { const pad = Math.abs(low) * 0.2 || 1; low -= low === 0 ? 0 : pad; high += pad; }
    if (start === end) { start -= 0.5; end += 0.5; }
    return { low, high, start, end };
  }

  /** What a series is called beside its colour: `labels` are of our own names, the rest of a name may be anyone's. */
  function called(panel, name) {
    if (panel.labels && panel.labels.has(name)) return panel.labels.get(name);
    return panel.prefix ? name.slice(panel.prefix.length) : (panel.unit || "");
  }

  /** One chart. `names` are its series; `cursor` connects it with the others. */
  function chart(panel, names, series, cursor) {
    const curves = names.map((name) => series[name]);
    const spread = panel.band && series[panel.band];
    const band = spread && new Map(spread.x.map((x, i) => [x, spread.y[i] || 0]));
    const box = bounds(curves, band);
    if (panel.share) { box.low = 0; box.high = 1; }
    if (panel.percent) box.low = 0;
    if (panel.zero) { box.low = Math.min(0, box.low); box.high = Math.max(0, box.high); }
    const toX = (x) => LEFT + ((x - box.start) / (box.end - box.start)) * (WIDTH - LEFT - RIGHT);
    const toY = (y) => HEIGHT - BOTTOM - ((y - box.low) / (box.high - box.low)) * (HEIGHT - TOP - BOTTOM);
    const label = panel.title + ". " + names.map((name, i) => describe(name, curves[i])).join("; ");
    const plot = svg("svg", { viewBox: "0 0 " + WIDTH + " " + HEIGHT, class: "plot", role: "img", "aria-label": label });

    for (const [tick, text] of ticks(box.low, box.high)) {
      plot.append(
        svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: toY(tick), y2: toY(tick), class: "grid" }),
        svg("text", { x: LEFT - 6, y: toY(tick) + 3.5, class: "tick", "text-anchor": "end" }, text));
    }
    if (panel.zero) plot.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: toY(0), y2: toY(0), class: "axis" }));
    const steps = [...new Set([Math.ceil(box.start), Math.round((box.start + box.end) / 2), Math.floor(box.end)])];
    steps.forEach((x, i) => plot.append(svg("text", {
      x: toX(x), y: HEIGHT - 6, class: "tick",
      "text-anchor": i === 0 && steps.length > 1 ? "start" : i === steps.length - 1 && i ? "end" : "middle",
    }, i === 0 ? "step " + x : x)));

    curves.forEach((curve, i) => {
      const color = "s" + (i % 6) + (i >= 6 ? " dashed" : "");
      if (band) {
        const edge = (sign) => curve.x.map((x, k) => curve.y[k] === null ? null : curve.y[k] + sign * (band.get(x) || 0));
        const there = path(curve.x, edge(1), toX, toY), back = path([...curve.x].reverse(), edge(-1).reverse(), toX, toY);
        if (!curve.y.includes(null)) plot.append(svg("path", { d: there + "L" + back.slice(1) + "Z", class: "band " + color }));
      }
      const noisy = curve.x.length > 24;
      plot.append(svg("path", { d: path(curve.x, curve.y, toX, toY), class: "curve " + color + (noisy ? " faint" : "") }));
      if (noisy) {
        const smoothed = smooth(curve.y, Math.max(2, Math.round(curve.x.length / 30)));
        plot.append(svg("path", { d: path(curve.x, smoothed, toX, toY), class: "curve " + color }));
      }
      const all = panel.dots || curve.x.length < 3;
      curve.x.forEach((x, k) => curve.y[k] !== null && (all || alone(curve.y, k)) && plot.append(
        svg("circle", { cx: toX(x), cy: toY(curve.y[k]), r: 2.6, class: "dot " + color })));
    });

    for (const mark of panel.marks || []) {
      if (mark.step < box.start || mark.step > box.end) continue;
      plot.append(svg("g", { class: "mark" }, svg("title", {}, "alarm at step " + mark.step + ": " + mark.key),
        svg("line", { x1: toX(mark.step), x2: toX(mark.step), y1: TOP, y2: HEIGHT - BOTTOM }),
        svg("path", { d: "M" + (toX(mark.step) - 4) + " " + (TOP - 6) + "h8l-4 7z" })));
    }
    const line = svg("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" });
    plot.append(line);
    const values = names.map(() => el("b", {}));
    const at = el("span", { class: "at" });
    const lookups = curves.map((curve) => new Map(curve.x.map((x, i) => [x, curve.y[i]])));

    function point(step) {
      line.setAttribute("visibility", step === null ? "hidden" : "visible");
      at.textContent = step === null ? "last" : "step " + step;
      if (step !== null) { line.setAttribute("x1", toX(step)); line.setAttribute("x2", toX(step)); }
      curves.forEach((curve, i) => {
        const known = curve.y.filter((y) => y !== null);
        const value = step === null ? known[known.length - 1] : lookups[i].get(step);
        values[i].textContent = show(value);
      });
    }
    const all = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
    plot.addEventListener("pointermove", (event) => {
      const area = plot.getBoundingClientRect();
      const wanted = box.start + (((event.clientX - area.left) / area.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (box.end - box.start);
      cursor.move(all.reduce((best, x) => Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best, all[0]));
    });
    plot.addEventListener("pointerleave", () => cursor.move(null));
    cursor.listen((step) => point(step !== null && (step < box.start || step > box.end) ? null : step));
    point(null);

    const legend = names.map((name, i) => el("span", { class: "key" },
      svg("svg", { viewBox: "0 0 14 6", class: "swatch", "aria-hidden": "true" },
        svg("line", { x1: 0, x2: 14, y1: 3, y2: 3, class: "curve s" + (i % 6) + (i >= 6 ? " dashed" : "") })),
      called(panel, name), " ", values[i]));
    return el("figure", { class: "chart", title: panel.note },
      el("figcaption", {}, el("strong", {}, panel.title), at, el("span", { class: "keys" }, legend)), plot);
  }

  mmreason.chart = chart;

  /** What charts share, so that all of them point at the same step. */
  mmreason.cursor = function () {
    const listeners = [];
    return { move: (step) => listeners.forEach((f) => f(step)), listen: (f) => listeners.push(f) };
  };

  /** The charts of those panels that the run has series for; what they show is taken out of `left`. */
  mmreason.panels = function (panels, series, cursor, alarms, left) {
    const cards = [];
    for (const panel of panels) {
      const named = (panel.keys || []).filter((name) => Object.hasOwn(series, name));
      const mine = named.concat(Object.keys(series).filter((name) =>
        panel.prefix && name.startsWith(panel.prefix) && !named.includes(name)));
      mine.concat(panel.band || []).forEach((name) => left.delete(name));
      const names = panel.happened ? mine.filter((name) => named.includes(name) || series[name].y.some(Boolean)) : mine;
      const marks = alarms.filter((alarm) => (panel.alarms || []).some((key) => alarm.key.startsWith(key)));
      if (names.length) cards.push(chart({ ...panel, marks }, names, series, cursor));
    }
    return cards;
  };

  /** Draw every curve into `root`; those that no panel names go into a closed section. */
  mmreason.charts = function (root, series, cursor, alarms) {
    const left = new Set(Object.keys(series));
    const cards = mmreason.panels(PANELS, series, cursor, alarms, left);
    const tools = mmreason.tools(series, cursor, alarms, left);
    if (!cards.length && !tools && !left.size) {
      root.append(el("p", { class: "note" }, "No metrics.jsonl yet: curves appear after the first logged step."));
      return;
    }
    root.append(el("div", { class: "charts" }, cards), tools || "");
    if (left.size) {
      const more = el("details", { class: "more" }, el("summary", {}, "More curves (" + left.size + ")"));
      more.addEventListener("toggle", () => more.append(el("div", { class: "charts" },
        [...left].sort().map((name) => chart({ title: name, keys: [name] }, [name], series, cursor)))), { once: true });
      root.append(more);
    }
  };
})((window.mmreason = window.mmreason || {}));
