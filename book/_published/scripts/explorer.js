// What the explorers share: elements, sliders, axes, and how a div is filled. Load it before them.
(function () {
  "use strict";
  const book = (window.studybook = window.studybook || {});
  const SVG = "http://www.w3.org/2000/svg";
  let made = 0; // labels, patterns and clips need names of their own

  // A new element at the end of `parent`; everything inside an SVG is SVG.
  function make(parent, tag, attributes, text) {
    const drawn = tag === "svg" || parent.namespaceURI === SVG;
    const element = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  function name() {
    made += 1;
    return `explorer-${made}`;
  }

  // Fill every div of this kind. `check` throws an Error that says what is wrong with the data.
  function explore(kind, check, fill) {
    for (const root of document.querySelectorAll(`.explorer[data-explorer="${kind}"]`)) {
      if (root.dataset.filled) continue;
      root.dataset.filled = "yes";
      let data;
      try {
        const source = root.querySelector('script[type="application/json"]');
        if (!source) throw new Error("there are none");
        data = JSON.parse(source.textContent);
        if (data === null || typeof data !== "object") throw new Error("they are no object");
        check(data);
      } catch (error) {
        const why = error instanceof SyntaxError ? "they are not JSON" : error.message;
        make(root, "p", { class: "explorer-error" }, `This explorer cannot be drawn, for its data are wrong: ${why}.`);
        continue;
      }
      fill(root, data);
    }
  }

  function number(value, low = -Infinity, high = Infinity) {
    return Number.isFinite(value) && value >= low && value <= high;
  }

  function numbers(list, length, low, high) {
    return Array.isArray(list) && list.length === length && list.every((value) => number(value, low, high));
  }

  function rising(list) {
    return Array.isArray(list) && list.every((value, i) => number(value) && (i === 0 || value > list[i - 1]));
  }

  function require(right, what) {
    if (!right) throw new Error(what);
  }

  // A labeled slider over the indices of `stops`. `say` gives the value as shown and as read aloud.
  function slider(parent, label, stops, start, say, changed) {
    const id = name();
    const row = make(parent, "div", { class: "explorer-control" });
    make(row, "label", { for: id }, label);
    const input = make(row, "input", { id, type: "range", min: 0, max: stops.length - 1, step: 1, value: start });
    const value = make(row, "span", { class: "explorer-value", "aria-hidden": "true" });
    function show() {
      const [shown, read] = say(stops[input.valueAsNumber]);
      value.textContent = shown;
      input.setAttribute("aria-valuetext", read);
    }
    input.addEventListener("input", () => {
      show();
      changed();
    });
    show();
    return {
      row,
      index: () => input.valueAsNumber,
      stop: () => stops[input.valueAsNumber],
      move(index) {
        input.value = index;
        show();
        changed();
      },
    };
  }

  // The place in `list` that is nearest to `value` by ratio.
  function nearest(list, value) {
    const far = list.map((other) => Math.abs(Math.log(other / value)));
    return far.indexOf(Math.min(...far));
  }

  // One row of the legend: [class of the line or box, its kind, words].
  function legend(parent, items) {
    const list = make(parent, "ul", { class: "explorer-legend" });
    for (const [style, kind, words] of items) {
      const item = make(list, "li");
      if (kind) {
        const svg = make(item, "svg", { viewBox: "0 0 28 12", width: 28, height: 12, "aria-hidden": "true" });
        if (kind === "line") make(svg, "line", { class: style, x1: 1, x2: 27, y1: 6, y2: 6 });
        if (kind === "dots") for (const cx of [6, 14, 22]) make(svg, "circle", { class: style, cx, cy: 6, r: 2.4 });
        if (kind === "box") {
          const box = { x: 4, y: 0.75, width: 20, height: 10.5 };
          if (style === "explorer-gap") box.style = `fill: url(#${hatch(svg)})`;
          make(svg, "rect", { class: style, ...box });
        }
      }
      make(item, "span", {}, words);
    }
  }

  // Red stripes; gives the name to fill with.
  function hatch(svg) {
    const id = name();
    const square = { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
    const pattern = make(make(svg, "defs"), "pattern", square);
    make(pattern, "rect", { class: "explorer-tint", width: 6, height: 6 });
    make(pattern, "line", { class: "explorer-stripe", x1: 3, x2: 3, y1: 0, y2: 6 });
    return id;
  }

  // An empty picture; text is 13.5 units high and the picture 280 pixels wide or more, so it stays legible.
  function picture(parent, height) {
    return make(parent, "svg", { class: "explorer-panel", viewBox: `0 0 340 ${height}`, role: "img" });
  }

  // Axes in `box` = [left, top, right, bottom]. `x` and `y` hold place (a function from values to [0, 1]),
  // ticks ([value, label] pairs) and title. Gives functions from values to places in the picture.
  function axes(svg, box, x, y) {
    const [left, top, right, bottom] = box;
    const at = {
      x: (value) => left + x.place(value) * (right - left),
      y: (value) => bottom - y.place(value) * (bottom - top),
      box,
    };
    make(svg, "path", { class: "explorer-axis", d: `M${left} ${top}V${bottom}H${right}` });
    for (const [value, label] of x.ticks) {
      make(svg, "path", { class: "explorer-axis", d: `M${at.x(value)} ${bottom}v4` });
      make(svg, "text", { x: at.x(value), y: bottom + 18, "text-anchor": "middle" }, label);
    }
    for (const [value, label] of y.ticks) {
      make(svg, "path", { class: "explorer-axis", d: `M${left} ${at.y(value)}h-4` });
      make(svg, "text", { x: left - 8, y: at.y(value) + 4.5, "text-anchor": "end" }, label);
    }
    make(svg, "text", { x: (left + right) / 2, y: bottom + 36, "text-anchor": "middle" }, x.title);
    make(svg, "text", { x: left, y: top - 9, "font-weight": "600" }, y.title);
    return at;
  }

  // Places along a line from `low` to `high`, and along a logarithmic one.
  function linear(low, high) {
    return (value) => (value - low) / (high - low);
  }

  function logarithmic(low, high) {
    return (value) => Math.log(value / low) / Math.log(high / low);
  }

  // Round numbers from the last below `low` to the first above `high`, about four of them.
  function ticks(low, high) {
    const rough = (high - low) / 3 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const first = Math.floor(low / step + 1e-9);
    const last = Math.ceil(high / step - 1e-9);
    return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step).map((v) => [v, v.toFixed(digits)]);
  }

  // The path through these points in the picture.
  function path(points) {
    return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
  }

  // Words under the pictures, read aloud when they change; the pictures' own labels say the same.
  function readout(parent, pictures) {
    const output = make(parent, "output", { class: "explorer-readout", "aria-live": "polite" });
    return (words) => {
      output.textContent = words;
      for (const [svg, what] of pictures) svg.setAttribute("aria-label", `${what}. ${words}`);
    };
  }

  Object.assign(book, {
    explorer: {
      ...{ make, name, explore, number, numbers, rising, require, slider, nearest, legend, hatch },
      ...{ picture, axes, linear, logarithmic, ticks, path, readout },
    },
  });
})();
