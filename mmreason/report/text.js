/* What the model wrote: thinking dimmed, answer marked, searched words highlighted. Text nodes only. */
(function (mmreason) {
  "use strict";
  const { el } = mmreason.dom;

  /** `text` as nodes, with every occurrence of `query` (lower case) inside <mark>. */
  function marked(text, query) {
    if (!query) return [document.createTextNode(text)];
    const low = text.toLowerCase();
    if (low.length !== text.length) return [document.createTextNode(text)]; // a letter whose lower case is longer
    const nodes = [];
    let position = 0;
    for (let hit = low.indexOf(query); hit >= 0; hit = low.indexOf(query, position)) {
      nodes.push(text.slice(position, hit), el("mark", {}, text.slice(hit, hit + query.length)));
      position = hit + query.length;
    }
    nodes.push(text.slice(position));
    return nodes;
  }

  mmreason.text = {
    marked,
    /** A completion given as [[kind, text], ...]. */
    completion: (segments, query) => el("pre", { class: "completion", dir: "auto" },
      segments.map(([kind, text]) => el("span", { class: "part-" + kind }, marked(text, query)))),
  };
})((window.mmreason = window.mmreason || {}));
