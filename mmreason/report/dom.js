/* Building blocks: elements made from text, never from markup. */
(function (mmreason) {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return node;
  }

  mmreason.dom = {
    /** An HTML element: el("p", {class: "x", onclick: f}, "text", otherElement). */
    el: (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children),
    /** The same for SVG. */
    svg: (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children),
    /** A number for people: three significant digits, no exponent where it can be avoided. */
    show(value, signed) {
      if (value === null || value === undefined) return "–";
      const size = Math.abs(value);
      const digits = size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : size >= 0.01 || size === 0 ? 2 : 4;
      const text = size !== 0 && (size >= 1e6 || size < 1e-4) ? value.toExponential(1) : value.toFixed(digits);
      return (signed && value > 0 ? "+" : "") + text.replace("-", "−");
    },
  };
})((window.mmreason = window.mmreason || {}));
