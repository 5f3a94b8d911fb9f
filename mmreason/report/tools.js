/* The curves of tool use: how often tools are called, what fails, and whether they help. */
(function (mmreason) {
  "use strict";
  const { el } = mmreason.dom;

  const MEANINGS = [
    ["Episodes with a call", "an episode counts once the model has written a call, whatever came of it."],
    ["Failed attempts", "an attempt is a call, or a turn in which none could be read. One line a kind; kinds that never happened have none."],
    ["Accuracy with and without", "with: at least one call was carried out. It says little by itself: a model calls tools where a question is hard. What follows compares answers to the same question."],
    ["Inside groups", "only mixed groups count, those with answers of both sorts: with a call that was carried out, and without. Above 0, tools go with right answers."],
    ["Still no experiment", "the model chose who calls. mmreason eval with eval.without_tools=true asks the same questions twice, with the tools and without."],
  ];

  /** A panel of named series: [[metric without tools/, what it is called here], …]. */
  function panel(title, series, options) {
    const named = series.map(([name, label]) => ["tools/" + name, label]);
    return { title, keys: named.map(([name]) => name), labels: new Map(named), percent: true, ...options };
  }

  const PANELS = [
    panel("Episodes with a call", [["call_rate", "share of episodes"]], { share: true, alarms: ["tools given up", "tools never called"] }),
    panel("Calls per episode", [["calls", "all"], ["calls_when_right", "answer right"], ["calls_when_wrong", "answer wrong"]]),
    panel("Failed attempts, share", [["failure_rate", "all"]], { prefix: "tools/failures/", happened: true, alarms: ["calls fail"] }),
    panel("Repeated calls", [["failures/duplicate", "share of attempts"]], { alarms: ["calls repeated"] }),
    panel("Cut off before the answer", [["over_budget", "share of episodes"], ["forced", "told to answer"]], { alarms: ["over budget"] }),
    panel("Area of crops and zooms", [["look_area", "mean share of the picture"], ["full_looks", "whole pictures, share of looks"]], { alarms: ["full looks"] }),
    panel("Accuracy with and without", [["accuracy_with", "with a tool"], ["accuracy_without", "without"]], { share: true }),
    panel("Inside groups: accuracy with − without", [["gain_in_groups", "mean over mixed groups"]], { percent: false, zero: true }),
    panel("Inside groups: who is right", [["groups/only_with", "only with"], ["groups/only_without", "only without"], ["groups/both", "both"], ["groups/neither", "neither"]], { share: true, note: "share of mixed groups" }),
    panel("Mixed groups", [["mixed_groups", "share of groups"]], { note: "groups with answers of both sorts, with a tool and without: what the two charts before this rest on" }),
    panel("Pictures from tools", [["pictures", "per episode"]]),
    panel("Tokens shown by tools", [["observation_share", "share of the completions"]]),
  ];

  /** The group of charts, or null for a run without tools. */
  mmreason.tools = function (series, cursor, alarms, left) {
    const cards = mmreason.panels(PANELS, series, cursor, alarms, left);
    return cards.length ? el("section", { class: "tools", "aria-labelledby": "tools-title" },
      el("h3", { id: "tools-title" }, "Tools"),
      el("details", { class: "meanings" }, el("summary", {}, "How to read this"),
        el("dl", {}, MEANINGS.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))))),
      el("div", { class: "charts" }, cards)) : null;
  };
})((window.mmreason = window.mmreason || {}));
