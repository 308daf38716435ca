// A reliability diagram whose temperature the reader sets, and both scores over all temperatures.
(function () {
  "use strict";
  const book = window.studybook.explorer;
  const { make, require } = book;

  function check(data) {
    const { temperatures, count, ece, nll } = data;
    require(typeof data.label === "string", "label must be words");
    require(Number.isInteger(data.networks) && data.networks > 0, "networks must be a positive whole number");
    require(
      book.rising(temperatures) && temperatures.length > 1 && temperatures[0] > 0,
      "temperatures must be two or more rising positive numbers"
    );
    const rows = temperatures.length;
    require(book.number(data.fitted) && data.fitted > 0, "fitted must be a positive number");
    require(book.numbers(ece, rows, 0, 1), "ece must hold a number in [0, 1] for each temperature");
    require(book.numbers(nll, rows, 0), "nll must hold a number that is not negative for each temperature");
    const bins = Array.isArray(count) && Array.isArray(count[0]) ? count[0].length : 0;
    require(
      bins > 0 && count.length === rows && count.every((row) => book.numbers(row, bins, 0) && Math.max(...row) > 0),
      "count must hold a row of bins, not all empty, for each temperature"
    );
    for (const name of ["accuracy", "confidence"]) {
      const inside = (row, t) =>
        Array.isArray(row) &&
        row.length === bins &&
        row.every((value, b) => count[t][b] === 0 || book.number(value, 0, 1));
      require(
        Array.isArray(data[name]) && data[name].length === rows && data[name].every(inside),
        `${name} must hold a number in [0, 1] for each bin of count that is not empty`
      );
    }
  }

  function fill(root, data) {
    const { temperatures, ece, nll } = data;
    const controls = make(root, "div", { class: "explorer-controls" });
    const start = book.nearest(temperatures, 1);
    const slider = book.slider(
      controls,
      "temperature T",
      temperatures,
      start,
      (t) => [t.toFixed(2), `temperature ${t.toFixed(2)}`],
      draw
    );
    const buttons = make(slider.row, "span", { class: "explorer-buttons" });
    for (const [words, value] of [
      ["T = 1", 1],
      ["fitted T", data.fitted],
    ]) {
      const button = make(buttons, "button", { type: "button", title: "the nearest of the slider's stops" }, words);
      button.addEventListener("click", () => slider.move(book.nearest(temperatures, value)));
    }
    const networks = data.networks > 1 ? `${data.label}, mean of ${data.networks} networks` : data.label;
    book.legend(root, [
      ["", "", networks],
      ["explorer-bar", "box", "accuracy in a bin (paler: fewer images)"],
      ["explorer-gap", "box", "gap to the bin's confidence"],
      ["explorer-guide", "line", "accuracy = confidence"],
    ]);

    const panels = make(root, "div", { class: "explorer-panels" });
    const diagram = book.picture(panels, 358);
    const curves = book.picture(panels, 358);
    const say = book.readout(root, [
      [diagram, `Reliability diagram of ${data.label}: accuracy per confidence bin`],
      [curves, `ECE and NLL of ${data.label} over temperatures`],
    ]);

    const shares = [0, 0.2, 0.4, 0.6, 0.8, 1].map((value) => [value, String(value)]);
    const unit = { place: book.linear(0, 1), ticks: shares };
    const at = book.axes(diagram, [38, 26, 332, 316], { ...unit, title: "confidence" }, { ...unit, title: "accuracy" });
    const stripes = book.hatch(diagram);
    const bars = make(diagram, "g");
    const diagonal = { x1: at.x(0), y1: at.y(0), x2: at.x(1), y2: at.y(1) };
    make(diagram, "line", { class: "explorer-guide", ...diagonal });

    const ends = [temperatures[0], temperatures[temperatures.length - 1]];
    const powers = Array.from({ length: 21 }, (_, i) => 2 ** (i - 10));
    const inside = powers.filter((t) => t >= ends[0] * 0.999 && t <= ends[1] * 1.001);
    const along = { place: book.logarithmic(...ends), ticks: inside.map((t) => [t, String(t)]) };
    const bare = { ...along, ticks: inside.map((t) => [t, ""]), title: "" }; // the axis below has the names
    const percent = ece.map((value) => 100 * value);
    const dots = [
      score(percent, "ECE, %", 3, [38, 26, 332, 152], bare, [0, Math.max(...percent)]),
      score(nll, "NLL, nats", 1, [38, 190, 332, 316], { ...along, title: "temperature T" }, [
        Math.min(...nll),
        Math.max(...nll),
      ]),
    ];

    // One score over temperatures; gives what moves its dot.
    function score(values, title, color, box, x, range) {
      const ticks = book.ticks(...range);
      const y = { place: book.linear(ticks[0][0], ticks[ticks.length - 1][0]), ticks, title };
      const at = book.axes(curves, box, x, y);
      if (data.fitted >= ends[0] && data.fitted <= ends[1]) {
        const place = at.x(data.fitted);
        make(curves, "line", { class: "explorer-fitted", x1: place, x2: place, y1: box[1], y2: box[3] });
        const side = place > (box[0] + box[2]) / 2 ? [-6, "end"] : [6, "start"];
        const words = `fitted T = ${data.fitted.toFixed(2)}`;
        if (color === 3) make(curves, "text", { x: place + side[0], y: box[1] + 4, "text-anchor": side[1] }, words);
      }
      const points = values.map((value, i) => [at.x(temperatures[i]), at.y(value)]);
      make(curves, "path", { class: `explorer-line explorer-stroke-${color}`, d: book.path(points) });
      const dot = make(curves, "circle", { class: `explorer-dot explorer-fill-${color}`, r: 5.5 });
      return (i) => {
        dot.setAttribute("cx", points[i][0]);
        dot.setAttribute("cy", points[i][1]);
      };
    }

    function draw() {
      const t = slider.index();
      const count = data.count[t];
      const most = Math.max(...count);
      bars.replaceChildren();
      count.forEach((images, b) => {
        if (images === 0) return;
        const [accuracy, confidence] = [data.accuracy[t][b], data.confidence[t][b]];
        const [x, next] = [at.x(b / count.length), at.x((b + 1) / count.length)];
        const place = { x: x + 0.75, width: next - x - 1.5 };
        const opacity = 0.35 + (0.65 * images) / most;
        const bar = { y: at.y(accuracy), height: at.y(0) - at.y(accuracy), "fill-opacity": opacity };
        make(bars, "rect", { class: "explorer-bar", ...place, ...bar });
        const [top, bottom] = [at.y(Math.max(accuracy, confidence)), at.y(Math.min(accuracy, confidence))];
        const gap = { y: top, height: bottom - top, style: `fill: url(#${stripes})` };
        make(bars, "rect", { class: "explorer-gap", ...place, ...gap });
      });
      for (const move of dots) move(t);
      say(
        `T = ${temperatures[t].toFixed(2)}: ECE ${percent[t].toFixed(1)} %, NLL ${nll[t].toFixed(2)}; ` +
          "accuracy never changes"
      );
    }

    draw();
  }

  book.explore("temperature", check, fill);
})();
