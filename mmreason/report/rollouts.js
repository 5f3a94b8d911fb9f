/* Groups of rollouts as cards, made only when they come near the screen. */
(function (mmreason) {
  "use strict";
  const { el, svg, show } = mmreason.dom;

  const PAGE = 8;
  const CAUSE_TEXT = { format: "format failed", no_box: "no box parsed", no_image: "a box without image", box_off: "box off", wrong: "answer wrong", length: "cut at the limit", budget: "budget used up", call: "a call failed" };

  function advantage(value) {
    if (value === null) return null;
    const sign = value > 1e-9 ? "up" : value < -1e-9 ? "down" : "zero";
    const length = Math.min(1, Math.abs(value) / 2.5) * 19;
    return el("span", { class: "advantage " + sign, title: "advantage: how much better than its group" },
      "advantage ", el("b", {}, show(value, true)),
      svg("svg", { viewBox: "0 0 40 10", class: "bar", "aria-hidden": "true" },
        svg("line", { x1: 20, x2: 20, y1: 0, y2: 10, class: "axis" }),
        svg("rect", { x: value < 0 ? 20 - length : 20, y: 2, width: length, height: 6, rx: 1.5 })));
  }

  function rollout(item, number, query, picture, pinned, pictures) {
    const parts = Object.entries(item.rewards).map(([name, value]) =>
      el("span", { class: "part" + (value === null ? " none" : ""), title: value === null ? "does not apply, or failed" : null },
        name, " ", el("b", {}, show(value))));
    const node = el("article", { class: "rollout", tabindex: "0", "aria-label": "rollout " + number },
      el("header", {},
        el("span", { class: "number" }, "#" + number),
        el("span", { class: "reward" }, "reward ", el("b", {}, show(item.reward))),
        advantage(item.advantage), parts,
        item.iou === null || Math.abs(item.iou - item.rewards.iou) < 0.005 ? null : el("span", { class: "part", title: "best overlap of a predicted with a true box" }, "overlap ", el("b", {}, show(item.iou))),
        el("span", { class: "part" }, el("b", {}, show(item.tokens)), " tokens"),
        item.stop && item.stop !== "stop" ? el("span", { class: "part" }, "ended by ", el("b", {}, item.stop)) : null,
        item.why.map((why) => el("span", { class: "cause" }, CAUSE_TEXT[why] || why))),
      item.trajectory ? mmreason.trajectory(item.trajectory, query, pictures) : null,
      item.segments.length || !item.trajectory ? mmreason.text.completion(item.segments, query) : null);
    const hover = (on) => { if (!pinned.node) picture.highlight(on ? item : null); };
    node.addEventListener("pointerenter", () => hover(true));
    node.addEventListener("pointerleave", () => hover(false));
    node.addEventListener("focus", () => hover(true));
    node.addEventListener("blur", () => hover(false));
    const pin = () => {
      const again = pinned.node === node;
      if (pinned.node) pinned.node.classList.remove("pinned");
      pinned.node = again ? null : node;
      node.classList.toggle("pinned", !again);
      picture.highlight(item);
    };
    node.addEventListener("click", () => { if (!String(window.getSelection())) pin(); });
    node.addEventListener("keydown", (event) => {
      if (event.target === node && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); pin(); }
    });
    return node;
  }

  function card(found, query, pictures) {
    const { group } = found;
    const picture = mmreason.overlay(group, pictures);
    const pinned = { node: null };
    const numbers = new Map(group.rollouts.map((item, index) => [item, index + 1]));
    const list = el("div", { class: "list" });
    const fillList = (items) => list.replaceChildren(
      ...items.map((item) => rollout(item, numbers.get(item), query, picture, pinned, pictures)));
    fillList(found.rollouts);
    const hidden = group.rollouts.length - found.rollouts.length;
    const rest = hidden ? el("button", { type: "button", class: "rest", onclick: () => { fillList(group.rollouts); rest.remove(); } },
      "show the " + hidden + " that do not match") : null;
    return el("section", { class: "group", "aria-label": "group " + group.id },
      el("header", {},
        el("h3", {}, group.step === null ? "step ?" : "step " + group.step),
        el("code", { class: "id" }, group.id),
        group.dataset ? el("span", { class: "chip" }, group.dataset) : null,
        el("span", { class: "stats" }, "mean ", el("b", {}, show(group.mean)), " · spread ", el("b", {}, show(group.spread)),
          " · best − worst ", el("b", {}, show(group.gap)), " · length ", el("b", {}, show(group.length)))),
      el("div", { class: "body" },
        el("div", { class: "question" },
          group.images.length ? picture.node : null,
          group.prompt.map((message) => el("div", { class: "message" },
            el("span", { class: "role" }, message.role), el("p", { dir: "auto" }, mmreason.text.marked(message.text, query)))),
          group.target ? el("div", { class: "message target" }, el("span", { class: "role" }, "truth"), el("p", { dir: "auto" }, group.target)) : null),
        el("div", { class: "answers" }, list, rest)));
  }

  /** Show `found` (from filters.select) in `root`, a page of cards at a time. */
  mmreason.rollouts = function (root, found, query, pictures) {
    if (mmreason.rollouts.watcher) mmreason.rollouts.watcher.disconnect();
    root.replaceChildren();
    let next = 0;
    const end = el("div", { class: "end" });
    function more() {
      const cards = found.slice(next, next + PAGE).map((item) => card(item, query, pictures));
      next += cards.length;
      end.before(...cards);
      if (next >= found.length) { watcher.disconnect(); end.remove(); }
    }
    const watcher = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      more();
      if (next < found.length) { watcher.unobserve(end); watcher.observe(end); } // asks again: the page may still be short
    }, { rootMargin: "1200px" });
    mmreason.rollouts.watcher = watcher;
    root.append(end);
    more();
    if (next < found.length) watcher.observe(end);
  };
})((window.mmreason = window.mmreason || {}));
