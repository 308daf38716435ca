// Filters and sorts the scoreboard. The state is in the address, so that a view can be linked.
(function () {
  "use strict";
  const form = document.querySelector("form.filters");
  const body = document.querySelector("table.scoreboard tbody");
  if (!form || !body) return;
  const rows = Array.from(body.rows);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const keys = ["part", "study", "profile", "verdict", "state"];
  const said = form.querySelector("output");

  const sorters = {
    "": () => 0,
    study: (a, b) => a.dataset.study.localeCompare(b.dataset.study),
    verdict: (a, b) => a.dataset.verdict.localeCompare(b.dataset.verdict),
    distance: (a, b) => number(a) - number(b),
    recorded: (a, b) => b.dataset.recorded.localeCompare(a.dataset.recorded),
  };

  function number(row) {
    return row.dataset.distance === "inf" ? Infinity : row.dataset.distance === "-inf" ? -Infinity : +row.dataset.distance;
  }

  function show() {
    const wanted = new FormData(form);
    const words = String(wanted.get("words")).toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const fits = keys.every((key) => !wanted.get(key) || row.dataset[key] === wanted.get(key));
      row.hidden = !(fits && words.every((word) => texts[i].includes(word)));
      shown += row.hidden ? 0 : 1;
    });
    const order = rows.map((row, i) => [row, i]);
    const by = sorters[wanted.get("sort")] || sorters[""];
    order.sort(([a, i], [b, j]) => by(a, b) || i - j);
    body.append(...order.map(([row]) => row));
    said.textContent = shown + " of " + rows.length + " claims";
    const query = new URLSearchParams();
    for (const [key, value] of wanted) if (value) query.set(key, value);
    const address = location.pathname + (query.size ? "?" + query : "") + location.hash;
    try {
      history.replaceState(null, "", address);
    } catch (error) {
      // some browsers do not let pages opened from disk change their address
    }
  }

  for (const [key, value] of new URLSearchParams(location.search)) {
    const field = form.elements[key];
    if (!field) continue;
    field.value = value;
    if (field.value !== value) field.value = ""; // no such choice
  }
  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show));
  form.addEventListener("submit", (event) => event.preventDefault());
  show();

  const day = 24 * 3600 * 1000;
  for (const time of body.querySelectorAll("time")) {
    const days = Math.floor((Date.now() - Date.parse(time.dateTime)) / day);
    time.title = time.textContent;
    if (days >= 0) time.textContent = days === 0 ? "today" : days === 1 ? "1 day old" : days + " days old";
  }
})();
