// The linear teacher and student in the limit of many dimensions: losses, accuracies and the delay between them.
(function () {
  "use strict";
  const book = window.studybook.explorer;
  const { make, require } = book;
  const RUNS = { lr: 0.01, level: 0.95, last: 1000000 }; // of the study; functions take others as their last argument
  const NEAR = 0.03; // nearer to 1 a ratio needs too many nodes
  const FLOOR = 1e-13; // losses below are not drawn

  // Eigenvalues and weights of the law of Marchenko and Pastur, as in the library's synthetic.marchenko_pastur.
  // The zero eigenvalues above ratio 1 stand first. With these nodes every loss above FLOOR has nine digits or more.
  const laws = new Map();
  function law(ratio) {
    if (laws.has(ratio)) return laws.get(ratio);
    if (!(ratio > 0 && ratio !== 1 && Number.isFinite(ratio))) {
      throw new RangeError(`ratio must be positive, finite and not 1, got ${ratio}`);
    }
    const nodes = Math.max(400, Math.ceil(40 / Math.abs(Math.log(ratio))));
    const [low, gap] = [(1 - Math.sqrt(ratio)) ** 2, 4 * Math.sqrt(ratio)];
    const [values, weights] = ratio > 1 ? [[0], [1 - 1 / ratio]] : [[], []];
    for (let i = 1; i <= nodes; i += 1) {
      const angle = (i * Math.PI) / (nodes + 1);
      const value = low + gap * Math.cos(angle / 2) ** 2;
      values.push(value);
      weights.push(((2 / (nodes + 1)) * Math.sin(angle) ** 2) / value);
    }
    const found = { values, weights };
    laws.set(ratio, found);
    return found;
  }

  // Training and generalization loss after `step` steps: one output, no weight decay, weights drawn at scale 1.
  function expected(ratio, step, lr = RUNS.lr) {
    const { values, weights } = law(ratio);
    let [train, general] = [0, 0];
    for (let k = 0; k < values.length; k += 1) {
      const left = weights[k] * (1 - 2 * lr * values[k]) ** (2 * step);
      train += left * values[k];
      general += left;
    }
    return [train, general];
  }

  // The error function of x >= 0: a series of positive terms, so nothing cancels. From 6 on it is 1 in doubles.
  function erf(x) {
    if (x >= 6) return 1;
    let [term, sum] = [x, x];
    for (let n = 1; term > 1e-17 * sum; n += 1) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  }

  // The share of points whose squared error, normal with this mean square, is below epsilon.
  function accuracy(loss, epsilon) {
    return erf(Math.sqrt(epsilon / (2 * loss)));
  }

  // The loss at which accuracy is `level`.
  function goal(epsilon, level = RUNS.level) {
    let [low, high] = [0, 6];
    for (let i = 0; i < 60; i += 1) {
      const middle = (low + high) / 2;
      if (erf(middle) < level) low = middle;
      else high = middle;
    }
    return epsilon / (2 * high * high);
  }

  // The first steps at which training and generalization accuracy reach the level; Infinity if not before `last`.
  function arrivals(ratio, epsilon, { lr, level, last } = RUNS) {
    const enough = goal(epsilon, level);
    return [0, 1].map((which) => {
      let [low, high] = [0, last];
      while (low < high) {
        const middle = Math.floor((low + high) / 2);
        if (expected(ratio, middle, lr)[which] <= enough) high = middle;
        else low = middle + 1;
      }
      return low < last ? low : Infinity;
    });
  }

  // Steps from the one arrival to the other. The training loss is never the greater, so it arrives first.
  function delay(ratio, epsilon, runs = RUNS) {
    const [train, general] = arrivals(ratio, epsilon, runs);
    return general === Infinity ? Infinity : general - train;
  }

  window.studybook.grokking = { expected, accuracy, arrivals, delay };

  function check(data) {
    const { lr, level, threshold, main, last, steps, ratios } = data;
    require(book.number(lr) && lr > 0, "lr must be a positive number");
    require(book.number(level) && level > 0 && level < 1, "level must be between 0 and 1");
    require(book.number(threshold) && threshold > 0, "threshold must be a positive number");
    require(Number.isInteger(last) && last >= 10, "last must be a whole number from 10 on");
    require(
      book.rising(steps) && steps.length > 1 && steps[0] === 0 && steps.every(Number.isInteger),
      "steps must be rising whole numbers from 0 on"
    );
    require(
      ratios !== null && typeof ratios === "object" && Object.keys(ratios).length > 0,
      "ratios must hold one ratio or more"
    );
    for (const [ratio, runs] of Object.entries(ratios)) {
      require(book.number(Number(ratio)) && Number(ratio) > 0, `ratios must be named by positive numbers, got ${ratio}`);
      for (const name of ["loss", "accuracy"]) {
        const pair = runs === null || typeof runs !== "object" ? null : runs[name];
        const high = name === "loss" ? Infinity : 1;
        require(
          Array.isArray(pair) && pair.length === 2 && pair.every((row) => book.numbers(row, steps.length, 0, high)),
          `${name} at ratio ${ratio} must hold two numbers for each step`
        );
      }
    }
    require(book.number(main) && main > 0 && Math.abs(main - 1) >= NEAR, "main must be positive and not near 1");
    const largest = Math.max(3, main, ...Object.keys(ratios).map(Number));
    require(lr * (1 + Math.sqrt(largest)) ** 2 < 1, "lr must be so small that the loss falls");
  }

  // Geometric stops of few digits, and those to keep: where one of these is, its near neighbors go.
  function stops(low, high, number, digits, keep) {
    const factor = (high / low) ** (1 / number);
    const even = Array.from({ length: number + 1 }, (_, i) => Number((low * factor ** i).toPrecision(digits)));
    const free = even.filter((stop) => keep.every((kept) => Math.abs(Math.log(stop / kept)) > Math.log(factor) / 3));
    return [...new Set([...free, ...keep])].sort((a, b) => a - b);
  }

  const UP = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

  function power(exponent) {
    return `10${[...String(exponent)].map((digit) => UP[digit]).join("")}`;
  }

  // 0.001 stays, 5.6e-7 becomes 5.6 × 10⁻⁷.
  function small(value) {
    if (value >= 0.001) return String(value);
    const [factor, exponent] = value.toExponential().split("e");
    return factor === "1" ? power(Number(exponent)) : `${factor} × ${power(Number(exponent))}`;
  }

  function whole(value) {
    return value.toLocaleString("en-US");
  }

  function fill(root, data) {
    const simulated = new Map(Object.entries(data.ratios).map(([ratio, runs]) => [Number(ratio), runs]));
    const far = (ratio) => Math.abs(ratio - 1) >= NEAR;
    const ratios = stops(0.05, 3, 60, 3, [...simulated.keys(), data.main]).filter(far);
    const thresholds = stops(1e-12, 10, 52, 2, [data.threshold]);
    const controls = make(root, "div", { class: "explorer-controls" });
    const ratio = book.slider(
      controls,
      "λ, dimensions per point",
      ratios,
      ratios.indexOf(data.main),
      (value) => [String(value), `ratio ${value}`],
      draw
    );
    const epsilon = book.slider(
      controls,
      "ε, error that counts as right",
      thresholds,
      thresholds.indexOf(data.threshold),
      (value) => [small(value), `threshold ${value}`],
      draw
    );
    const percent = Number((100 * data.level).toPrecision(4));
    const runs = [...simulated.keys()].filter(far).sort((a, b) => a - b);
    book.legend(root, [
      ["explorer-line explorer-stroke-0 explorer-dashed", "line", "training"],
      ["explorer-line explorer-stroke-1", "line", "generalization"],
      ["explorer-level", "line", `${percent} % are right`],
      ["explorer-delay", "line", "delay"],
      ["explorer-ink", "dots", `simulated, at λ = ${runs.join(", ")} (accuracies at ε = ${small(data.threshold)})`],
    ]);

    const panels = make(root, "div", { class: "explorer-panels" });
    const [losses, accuracies] = [book.picture(panels, 300), book.picture(panels, 300)];
    const say = book.readout(root, [
      [losses, "Training and generalization loss over steps"],
      [accuracies, "Training and generalization accuracy over steps"],
    ]);

    // Steps: linear from 0 to 1, then logarithmic to the last.
    const decades = Math.log10(data.last);
    const bent = (step) => (step < 1 ? step : 1 + Math.log10(step));
    const named = Array.from({ length: Math.floor(decades) + 1 }, (_, k) => [10 ** k, k < 2 ? `${10 ** k}` : power(k)]);
    const x = { place: (step) => bent(step) / (1 + decades), ticks: [[0, "0"], ...named], title: "steps" };
    const drawn = Array.from({ length: 201 }, (_, i) => (i * (1 + decades)) / 200).map((v) =>
      v < 1 ? v : 10 ** (v - 1)
    );
    const box = [46, 26, 324, 258];
    const exponents = [-13, -10, -7, -4, -1];
    const y = {
      losses: {
        place: book.logarithmic(FLOOR, 10),
        ticks: exponents.map((k) => [10 ** k, power(k)]),
        title: "loss (mean squared error)",
      },
      accuracies: {
        place: book.linear(0, 1.03),
        ticks: [0, 0.2, 0.4, 0.6, 0.8, 1].map((value) => [value, String(value)]),
        title: "accuracy (share of errors below ε)",
      },
    };
    const at = [book.axes(losses, box, x, y.losses), book.axes(accuracies, box, x, y.accuracies)];
    const marks = [losses, accuracies].map((svg) => {
      const clip = book.name();
      const [left, top, right, bottom] = box;
      const frame = { x: left, y: top, width: right - left + 6, height: bottom - top };
      make(make(svg, "clipPath", { id: clip }), "rect", frame);
      return { lines: make(svg, "g", { "clip-path": `url(#${clip})` }), dots: make(svg, "g") };
    });
    let known = { ratio: null, curve: null };

    // A curve, the simulated dots and the level with the delay on it, in one of the two pictures.
    function show(panel, curve, dots, level, steps) {
      const { lines, dots: circles } = marks[panel];
      const place = at[panel];
      lines.replaceChildren();
      circles.replaceChildren();
      const height = place.y(level);
      make(lines, "line", { class: "explorer-level", x1: box[0], x2: box[2], y1: height, y2: height });
      for (const i of [0, 1]) {
        const points = drawn.map((step, k) => [place.x(step), place.y(curve[k][i])]);
        const under = points.findIndex((point) => point[1] > box[3] + 1);
        const style = `explorer-line explorer-stroke-${i} ${i === 0 ? "explorer-dashed" : ""}`;
        make(lines, "path", { class: style, d: book.path(under < 0 ? points : points.slice(0, under + 1)) });
        if (dots === null) continue;
        dots[i].forEach((value, k) => {
          if (data.steps[k] > data.last || (panel === 0 && value < FLOOR)) return;
          const center = { cx: place.x(data.steps[k]), cy: place.y(value), r: 2.3 };
          make(circles, "circle", { class: `explorer-run explorer-fill-${i}`, ...center });
        });
      }
      if (steps[0] === Infinity) return;
      const [from, to] = [place.x(steps[0]), place.x(Math.min(steps[1], data.last))];
      make(circles, "line", { class: "explorer-delay", x1: from, x2: to, y1: height, y2: height });
      steps.forEach((step, i) => {
        const center = { cx: place.x(step), cy: height, r: 5 };
        if (step < Infinity) make(circles, "circle", { class: `explorer-dot explorer-fill-${i}`, ...center });
      });
    }

    function draw() {
      const [lambda, error] = [ratio.stop(), epsilon.stop()];
      if (known.ratio !== lambda) {
        known = { ratio: lambda, curve: drawn.map((step) => expected(lambda, step, data.lr)) };
      }
      const steps = arrivals(lambda, error, data);
      const runs = simulated.get(lambda);
      const shares = known.curve.map((pair) => pair.map((loss) => accuracy(loss, error)));
      show(0, known.curve, runs ? runs.loss : null, goal(error, data.level), steps);
      show(1, shares, runs && error === data.threshold ? runs.accuracy : null, data.level, steps);
      const [train, general] = steps.map((step) =>
        step < Infinity ? `at step ${whole(step)}` : `never by step ${whole(data.last)}`
      );
      const late = steps[1] < Infinity ? `a delay of ${whole(steps[1] - steps[0])} steps` : "the delay never ends";
      say(
        `λ = ${lambda}, ε = ${small(error)}: training reaches ${percent} % ${train}, generalization ${general}; ` +
          `${steps[0] < Infinity ? late : "no delay to tell of"}`
      );
    }

    draw();
  }

  book.explore("grokking", check, fill);
})();
