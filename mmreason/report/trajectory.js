/* An episode with tools: what the model wrote and what it was shown, the calls, and the pictures in their places. */
(function (mmreason) {
  "use strict";
  const { el } = mmreason.dom;

  const ERRORS = { malformed: "cannot be read", unknown_tool: "no such tool", bad_argument: "bad argument", unknown_image: "no such picture",
    tool_failed: "the tool failed", deadline: "too slow", duplicate: "the same call again", budget: "no budget left" };

  const has = (object, name) => Object.prototype.hasOwnProperty.call(object, name);

  function figure(id, found, pictures) {
    const inlined = found && has(pictures, found.path) ? pictures[found.path] : { uri: "", missing: found ? "left out to keep this page small" : "not on record" };
    const size = found && found.size ? " · " + found.size.join(" × ") + " px" : "";
    return el("figure", { class: "tool-picture" },
      inlined.uri.startsWith("data:image/")
        ? el("img", { src: inlined.uri, alt: id + (found.tool ? " by " + found.tool : ""), decoding: "async", loading: "lazy" })
        : el("p", { class: "missing" }, "Picture not shown: " + inlined.missing),
      el("figcaption", {}, el("b", {}, id), found && found.tool ? " by " + found.tool : "", size));
  }

  function call(found, query) {
    const failed = !found.ok || found.error;
    const told = found.arguments.map(([name, value]) => [el("span", { class: "argument" }, name), " ", mmreason.text.marked(value, query), "  "]);
    return el("p", { class: "call" + (failed ? " failed" : "") },
      el("b", {}, found.tool || "no call"), " ", told,
      failed ? el("span", { class: "cause" }, has(ERRORS, found.error) ? ERRORS[found.error] : found.error || "failed")
        : found.images ? el("span", { class: "part" }, found.images === 1 ? "1 picture" : found.images + " pictures") : null);
  }

  /** Said where not all of what was written is trained, or some of what was shown. */
  const part = (span, odd) => odd ? ", " + span.trained + " trained" : "";

  function written(span, query) {
    const kind = span.trained ? "trained" : "untrained";
    return el("div", { class: "span " + kind },
      el("span", { class: "who", title: span.trained ? "sampled by the model: these tokens are trained" : "sampled by the model; the episode was cut off, so they are not trained" },
        "model · " + span.tokens + part(span, span.trained && span.trained !== span.tokens)),
      el("div", {}, mmreason.text.completion(span.segments, query), span.calls.map((found) => call(found, query))));
  }

  function inserted(span, query, trajectory, pictures) {
    return el("div", { class: "span inserted" },
      el("span", { class: "who", title: "put there by tools and the loop: not trained" }, "shown · " + span.tokens + part(span, span.trained)),
      el("div", {}, span.parts.map(([kind, text]) => kind === "picture"
        ? figure(text, trajectory.pictures[text], pictures)
        : el("pre", { class: "completion", dir: "auto" }, mmreason.text.marked(text, query)))));
  }

  /** The whole episode; `pictures` are those of the page, by path. */
  mmreason.trajectory = function (trajectory, query, pictures) {
    const placed = new Set(trajectory.spans.flatMap((span) => (span.parts || []).filter((p) => p[0] === "picture").map((p) => p[1])));
    const left = Object.entries(trajectory.pictures).filter(([id]) => !placed.has(id));
    const count = (of) => trajectory.spans.reduce((sum, span) => sum + of(span), 0);
    const entry = (kind, text, tokens) => tokens ? el("span", { class: "key" }, el("i", { class: "swatch " + kind }), text + ", " + tokens + " tokens") : null;
    return el("div", { class: "trajectory" },
      trajectory.spans.length ? el("p", { class: "legend" },
        entry("trained", "trained", count((s) => s.trained)),
        entry("untrained", "written, not trained: the episode was cut off", count((s) => s.sampled ? s.tokens - s.trained : 0)),
        entry("inserted", "shown to the model", count((s) => s.sampled ? 0 : s.tokens))) : null,
      trajectory.spans.map((span) => span.sampled ? written(span, query) : inserted(span, query, trajectory, pictures)),
      trajectory.rest.map((found) => call(found, query)),
      left.map(([id, found]) => figure(id, found, pictures)));
  };
})((window.mmreason = window.mmreason || {}));
