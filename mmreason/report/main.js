/* Puts the page together. */
(function (mmreason) {
  "use strict";
  const { el } = mmreason.dom;
  const data = JSON.parse(document.getElementById("data").textContent);
  const groups = data.groups;

  const cursor = mmreason.cursor();
  mmreason.charts(document.getElementById("curves"), data.series, cursor, data.alarms);
  const rewards = document.getElementById("rewards");
  if (rewards) mmreason.rewards(rewards, data.rewards, data.series, cursor);

  const filters = document.getElementById("filters"), root = document.getElementById("groups");
  if (!groups.length) {
    root.append(el("p", { class: "note" }, "No rollouts to show: rollouts.jsonl is missing or empty (trainer.save_rollouts)."));
    return;
  }
  const count = el("p", { class: "count", "aria-live": "polite" });
  const form = mmreason.filters.form(groups, (want) => {
    const found = mmreason.filters.select(groups, want);
    const rollouts = found.reduce((sum, item) => sum + item.rollouts.length, 0);
    const partly = data.total_groups > groups.length
      ? " This page holds " + groups.length + " of the run's " + data.total_groups + " groups, spread evenly over its steps." : "";
    count.textContent = found.length + " of " + groups.length + " groups, " + rollouts + " of " + data.shown_rollouts + " rollouts." + partly;
    mmreason.rollouts(root, found, want.query, data.pictures);
  });
  filters.append(form.node, count);
  form.start();
})((window.mmreason = window.mmreason || {}));
