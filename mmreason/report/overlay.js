/* A picture with boxes over it, in original pixels. */
(function (mmreason) {
  "use strict";
  const { el, svg } = mmreason.dom;

  function rectangle(box, kind, label) {
    const [x1, y1, x2, y2] = box;
    const shape = svg("rect", {
      x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1), class: "box " + kind,
    }, svg("title", {}, label + " [" + box.map((v) => Math.round(v)).join(", ") + "]"));
    return shape;
  }

  /**
   * The pictures of a group, each with the boxes that lie in it.
   * Returns {node, highlight(rollout | null)}: highlighting shows one rollout's boxes and hides the others'.
   */
  mmreason.overlay = function (group, pictures) {
    const layers = new Map(group.rollouts.map((rollout) => [rollout, []]));
    const figures = group.images.map((image, index) => {
      const found = pictures[image.path] || { uri: "", missing: "no such picture" };
      const [width, height] = image.size || [0, 0];
      const frame = el("div", { class: "frame" });
      if (found.uri.startsWith("data:image/")) {
        frame.append(el("img", {
          src: found.uri, alt: "picture " + (index + 1) + " of " + group.id, decoding: "async",
          width: width || null, height: height || null, class: Math.max(width, height) < 200 ? "small" : null,
        }));
      } else {
        frame.append(el("p", { class: "missing" }, "Picture not shown: " + found.missing));
      }
      if (width && found.uri) {
        const here = (boxes, images) => boxes.filter((box, i) => images[i] === index);
        const canvas = svg("svg", { viewBox: "0 0 " + width + " " + height, class: "boxes", role: "img",
          "aria-label": here(group.true_boxes, group.true_images).length + " true boxes and the predicted ones" });
        group.rollouts.forEach((rollout, number) => {
          const layer = svg("g", { class: "layer" },
            here(rollout.looked, rollout.looked_images).map((box) => rectangle(box, "looked", "while thinking, rollout " + (number + 1))),
            here(rollout.boxes, rollout.box_images).map((box) => rectangle(box, "predicted", "rollout " + (number + 1))));
          layers.get(rollout).push(layer);
          canvas.append(layer);
        });
        group.true_boxes.forEach((box, i) => {
          if (group.true_images[i] === index) canvas.append(rectangle(box, "true", group.labels[i] || "true box"));
        });
        frame.append(canvas);
      }
      const sizes = image.size
        ? image.size.join(" × ") + " px" + (image.model_size ? ", the model sees " + image.model_size.join(" × ") : "") : "";
      const title = group.images.length > 1 ? "image " + (index + 1) + (sizes ? ": " : "") : "";
      return el("figure", { class: "picture" }, frame, el("figcaption", {}, title, sizes));
    });
    const node = el("div", { class: "pictures" }, figures);
    if (node.querySelector(".boxes")) node.append(mmreason.overlay.legend(group));
    return {
      node,
      highlight(chosen) {
        node.classList.toggle("focused", chosen !== null);
        layers.forEach((own, rollout) => own.forEach((layer) => layer.classList.toggle("on", rollout === chosen)));
      },
    };
  };

  mmreason.overlay.legend = function (group) {
    const any = (name) => group.rollouts.some((rollout) => rollout[name].length);
    const entry = (kind, text) => el("span", {},
      svg("svg", { viewBox: "0 0 18 12", class: "swatch", "aria-hidden": "true" },
        svg("rect", { x: 1.5, y: 1.5, width: 15, height: 9, class: "box " + kind })), text);
    return el("p", { class: "legend" },
      group.true_boxes.length ? entry("true", "true") : null,
      any("boxes") ? entry("predicted", "predicted") : null,
      any("looked") ? entry("looked", "named while thinking") : null);
  };
})((window.mmreason = window.mmreason || {}));
