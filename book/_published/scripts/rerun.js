// Composes the commands that run a study with the reader's own parameters.
(function () {
  "use strict";
  const form = document.querySelector("form.rerun");
  if (!form) return;
  const about = JSON.parse(form.querySelector("script").textContent);
  const profile = form.querySelector("#rerun-profile");
  const problem = form.querySelector("output.problem");
  const field = (parameter) => form.elements[parameter.name];
  const edited = new Set(); // what the reader changed stays when the profile changes

  function quoted(text) {
    return /^[\w@%+=:,./-]+$/.test(text) ? text : "'" + text.replace(/'/g, "'\\''") + "'";
  }

  function python(value) {
    return value === true ? "True" : value === false ? "False" : String(value);
  }

  // What the reader wrote, as text, or a sentence that says what is wrong.
  function read(parameter) {
    const input = field(parameter);
    if (parameter.type === "bool") return { text: python(input.checked) };
    const text = input.value.trim();
    if (parameter.type === "int" && !/^[+-]?\d+$/.test(text)) return { wrong: "a whole number" };
    if (parameter.type === "float") {
      if (!/^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/.test(text)) return { wrong: "a number" };
      return { text: /^[+-]?\d+$/.test(text) ? text + ".0" : text };
    }
    return { text: parameter.type === "str" ? input.value : text };
  }

  function same(parameter, text, value) {
    if (parameter.type === "int" || parameter.type === "float") return Number(text) === Number(value);
    return text === python(value);
  }

  function compose() {
    const name = profile.value;
    const studybook = ["studybook", "run", about.study].concat(name === "quick" ? [] : ["--profile", name]);
    const papermill = ["papermill", about.notebook, "out.ipynb"];
    problem.textContent = "";
    for (const parameter of about.parameters) {
      const { text, wrong } = read(parameter);
      const input = field(parameter);
      input.toggleAttribute("aria-invalid", Boolean(wrong));
      if (wrong) {
        problem.textContent = parameter.name + " must be " + wrong + ", got “" + input.value + "”.";
        continue;
      }
      if (!same(parameter, text, about.profiles[name][parameter.name])) studybook.push("-p", parameter.name, quoted(text));
      if (!same(parameter, text, parameter.default)) {
        papermill.push(parameter.type === "str" ? "-r" : "-p", parameter.name, quoted(text));
      }
    }
    for (const [tool, words] of [["studybook", studybook], ["papermill", papermill]]) {
      const place = form.querySelector('[data-for="' + tool + '"]');
      place.querySelector("code").textContent = problem.textContent ? "" : words.join(" ");
      place.querySelector("button").disabled = Boolean(problem.textContent);
    }
  }

  function fill() {
    for (const parameter of about.parameters) {
      if (edited.has(parameter.name)) continue;
      const value = about.profiles[profile.value][parameter.name];
      if (parameter.type === "bool") field(parameter).checked = value;
      else field(parameter).value = String(value);
    }
    compose();
  }

  function copied(code, button) {
    const done = () => {
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    };
    const select = () => {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      if (document.execCommand("copy")) done();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, select);
    else select();
  }

  for (const place of form.querySelectorAll(".command")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy the " + place.dataset.for + " command");
    button.addEventListener("click", () => copied(place.querySelector("code"), button));
    place.append(button);
  }
  profile.addEventListener("change", fill);
  form.addEventListener("input", (event) => {
    if (event.target === profile) return;
    edited.add(event.target.name);
    compose();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  fill();
})();
