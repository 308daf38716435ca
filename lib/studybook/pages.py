"""What readers see around a study: cards, verdicts, forms, tables and indexes, as text made from run records."""

import ast
import csv
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from studybook import sweep
from studybook.ledger import VERDICTS
from studybook.studies import QUICK, Study, parameter_lines, parameters, parsed

SCHEMA = 1  # of claims.json and claims.csv: book/claims.md says what they hold
OURS = "studybook-"  # ids of the cells that `page` adds begin so
_EXERCISE = re.compile(  # a question of a numbered list and, folded under it, its answer
    r"^(?P<number>\d+)\. (?P<question>(?:(?!<details)(?!^\d+\. ).)+?)\n+"
    r'<details class="answer"><summary>Answer</summary>\n+(?P<answer>.*?)\n+</details>[ ]*\n?',
    re.M | re.S,
)
WORDS_A_MINUTE, FIGURES_A_MINUTE = 200, 4  # at which technical text and its figures are read


class Entry(NamedTuple):
    """A study at one profile: its record, and what has changed since (nothing: fresh)."""

    study: Study
    record: Mapping[str, Any]
    stale: Sequence[str]

    @property
    def profile(self) -> str:
        """The profile's name."""
        return self.record["profile"]

    @property
    def claims(self) -> Sequence[Mapping[str, Any]]:
        """Claims with interval and verdict, in the study's order."""
        return self.record["claims"]


def tally(claims: Sequence[Mapping]) -> dict[str, int]:
    """How many claims have which verdict."""
    return {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}


def escaped(text: object) -> str:
    """Text for HTML inside Markdown: no character is left that either would read."""
    return html.escape(str(text)).translate({ord(c): f"&#{ord(c)};" for c in "\\`*_{}[]$"})


# ---------------------------------------------------------------- a study's page


def page(
    notebook: dict, shown: Entry, entries: Sequence[Entry], tables: Mapping[str, Sequence[str]], failure: str = ""
) -> dict:
    """The executed notebook with all that the book adds: card, verdicts of other profiles, form, provenance.

    `entries` are the study's records at all profiles; `tables` the sweeps whose rows are published, by profile;
    `failure` what went wrong in a later run. Cells and outputs that an earlier call added are replaced.
    """
    study = shown.study
    cells = [dict(cell) for cell in notebook["cells"] if not cell.get("id", "").startswith(OURS)]
    minutes = reading_minutes(cells)
    drawn = drawn_from(cells)
    others = {entry.profile: entry for entry in entries if entry.profile != shown.profile}
    loaded: set[str] = set()
    for i, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            cell["source"] = _exercises(study, "".join(cell["source"]))
            continue
        outputs = [dict(o) for o in cell.get("outputs", []) if "studybook-data" not in o.get("metadata", {})]
        for output in outputs:
            if claim := output.get("metadata", {}).get("studybook"):
                output["data"] = {**output["data"], "text/html": _verdict(study, claim, others)}
            if explorer := output.get("metadata", {}).get("studybook-explorer"):
                output["data"] = {**output["data"], "text/html": _explorer(explorer, loaded)}
        if any("image/svg+xml" in output.get("data", {}) for output in outputs):
            wanted = [name for name in drawn[i] if name in tables.get(shown.profile, ())]
            outputs += [_rows_output(study, shown.profile, wanted)] if wanted else []
        cell["outputs"] = outputs
    for text, name, at in (
        (_card(shown, entries, minutes, failure), "card", 1),
        (_rerun(study), "rerun", len(cells) + 1),
        (_made(shown, entries, tables), "made", len(cells) + 2),
    ):
        cells.insert(at, {"cell_type": "markdown", "id": OURS + name, "metadata": {}, "source": text})
    return {**notebook, "cells": cells}


def _exercises(study: Study, text: str) -> str:
    """Exercises as the book shows them; in the source they are a numbered list that JupyterLab shows well, too."""

    def admonitions(found: re.Match) -> str:
        label = f"{study.name}-exercise-{found['number']}"
        question, answer = found["question"].strip(), found["answer"].strip()
        return (
            f":::{{exercise}}\n:label: {label}\n\n{question}\n:::\n\n"
            f":::{{solution}} {label}\n:class: dropdown\n\n{answer}\n:::\n"
        )

    return _EXERCISE.sub(admonitions, text)


def without_answers(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """A study's source as students may have it: its exercises, but not their answers."""
    cells = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        asked = _EXERCISE.sub(lambda found: f"{found['number']}. {found['question'].strip()}\n", text)
        cells.append({**cell, "source": asked} if asked != text else cell)
    return {**notebook, "cells": cells}


def reading_minutes(cells: Sequence[Mapping]) -> int:
    """Minutes that the page takes to read, without its code; answers to exercises count, as they are text."""
    words = sum(len("".join(cell["source"]).split()) for cell in cells if cell["cell_type"] == "markdown")
    figures = sum("plt.subplots" in "".join(cell["source"]) for cell in cells)
    return max(1, round(words / WORDS_A_MINUTE + figures / FIGURES_A_MINUTE))


def drawn_from(cells: Sequence[Mapping]) -> list[list[str]]:
    """For each cell, the sweeps (by the function that measures) whose rows reach it, followed from name to name."""
    carried: dict[str, set[str]] = {}
    found = []
    for cell in cells:
        used: set[str] = set()
        for node in parsed("".join(cell["source"])).body if cell["cell_type"] == "code" else []:
            bound = {part.id for loop in ast.walk(node) if isinstance(loop, ast.For | ast.comprehension)
                     for part in ast.walk(loop.target) if isinstance(part, ast.Name)}  # fmt: skip
            names = [part for part in ast.walk(node) if isinstance(part, ast.Name) and part.id not in bound]
            flows = set().union(*(carried.get(n.id, ()) for n in names if isinstance(n.ctx, ast.Load)))
            flows |= set(_measures(node))
            stored = [n.id for n in names if isinstance(n.ctx, ast.Store)]
            for name in [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else stored:
                carried[name] = flows
            used |= flows
        found.append(sorted(used))
    return found


def _measures(node: ast.AST) -> list[str]:
    return [
        call.args[0].id
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "run" and call.args
        if isinstance(call.args[0], ast.Name)
    ]


def _rows_output(study: Study, profile: str, names: Sequence[str]) -> dict[str, Any]:
    links = ", ".join(
        f'<a href="{_rows_file(study, profile, name)}" download="{study.name}-{profile}-{name}.csv">{name}.csv</a>'
        for name in names
    )
    text = f'<p class="figure-data">Rows behind this figure: {links}</p>'
    return {
        "output_type": "display_data",
        "data": {"text/html": text, "text/plain": f"Rows behind this figure: {', '.join(names)}"},
        "metadata": {"studybook-data": True},
    }


def _rows_file(study: Study, profile: str, name: str) -> str:
    return f"../../data/{study.name}/{profile}/{name}.csv"


def _badges(entry: Entry) -> str:
    found = [
        f'<a class="badge verdict-{verdict}" '
        f'href="../../scoreboard.html?study={entry.study.name}&amp;profile={entry.profile}&amp;verdict={verdict}">'
        f"{n} {verdict}</a>"
        for verdict, n in tally(entry.claims).items()
        if n
    ]
    return " ".join(found)


def _card(shown: Entry, entries: Sequence[Entry], minutes: int, failure: str) -> str:
    study, paper = shown.study, shown.study.about["paper"]
    rows = [("This page", f"{_scale(shown)}, {_when(shown.record)}")]
    known = {entry.profile: entry for entry in entries} | {shown.profile: shown}
    for name in study.profiles:
        verdicts = _badges(known[name]) if name in known else "not run"
        rows.append((f"Verdicts, {name}", verdicts))
    controls = sum(claim["control"] for claim in shown.claims)
    if len(known) > 1:
        rows.append(("Below", "verdicts of this run; those of other profiles stand under each"))
    rows.append(("Read", f"{minutes} minutes, {len(shown.claims) - controls} claims and {controls} controls"))
    rows.append(("Rerun", "; ".join(f"<code>{n}</code> {_needs(study, n)}" for n in study.profiles)))
    lines = [
        ":::{card}",
        ":class-card: study-card",
        f"[{paper['title']}]({paper['url']}), {paper['authors']}, {paper['venue']} {paper['year']}. "
        f"Part: {{doc}}`/parts/{study.part}`.",
        "",
        '<dl class="facts">' + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows) + "</dl>",
        ":::",
    ]
    if failure:
        lines += [
            "",
            f":::{{danger}}\nA later run of this study failed; this page shows the one before. {failure}\n:::",
        ]
    if shown.stale:
        lines += ["", f":::{{warning}}\n{_stale_sentence(shown)}\n:::"]
    return "\n".join(lines)


def _when(record: Mapping[str, Any]) -> str:
    return f'<time datetime="{record["started"]}">{record["started"][:10]}</time>'


def _needs(study: Study, name: str) -> str:
    profile = study.profile(name)
    needs = profile.get("needs", {})
    words = [f"about {sweep.duration(profile.get('seconds', 0))}"]
    words += ["a GPU"] if needs.get("gpu") else []
    words += [f"data: {', '.join(escaped(d) for d in needs['data'])}"] if needs.get("data") else []
    return ", ".join(words) + ("" if needs else ", nothing but this project")


def _scale(shown: Entry) -> str:
    """What a page shows, at what size: the profile's own words only where no parameter was changed."""
    overrides = shown.record["overrides"]
    if changed := ", ".join(f"{name} = {value}" for name, value in overrides.items()):
        return f"profile <code>{shown.profile}</code> with <code>{escaped(changed)}</code>"
    return f"{escaped(shown.study.profile(shown.profile).get('says', ''))} (profile <code>{shown.profile}</code>)"


def _stale_sentence(shown: Entry) -> str:
    return (
        f"Stale: the {' and '.join(shown.stale)} behind the stored numbers of this page changed since they were "
        f"measured. `studybook run {shown.study.name} --profile {shown.profile} --fresh` measures them again."
    )


# ---------------------------------------------------------------- verdicts


def _show(claim: Mapping[str, Any], value: float | None) -> str:
    return "unbounded" if value is None else format(value, claim["unit"])


def _side(claim: Mapping[str, Any]) -> tuple[str, float]:
    return ("above", claim["above"]) if claim["above"] is not None else ("below", claim["below"])


def _range(claim: Mapping[str, Any]) -> str:
    return f"{_show(claim, claim['low'])} to {_show(claim, claim['high'])}, n\u00a0=\u00a0{claim['n']}"


def _badge(verdict: str) -> str:
    return f'<span class="badge verdict-{verdict}">{verdict}</span>'


def _verdict(study: Study, claim: Mapping[str, Any], others: Mapping[str, Entry]) -> str:
    """One claim with its verdict here and, below, at the study's other profiles."""
    kind, (side, threshold) = "control" if claim["control"] else "claim", _side(claim)
    anchor = f"claim-{escaped(claim['name'])}"
    numbers = (
        f"claimed {side} {_show(claim, threshold)}; ours {_show(claim, claim['mean'])}, 95 % interval {_range(claim)}"
    )
    numbers += f"; paper {html.escape(claim['paper'])}" if claim["paper"] else ""
    beside = []
    for profile in study.profiles:
        same = [c for c in others[profile].claims if c["name"] == claim["name"]] if profile in others else []
        for other in same:
            stale = " (stale)" if others[profile].stale else ""
            beside.append(
                f"<li>{drawn(other)} {_badge(other['verdict'])} at <code>{profile}</code>: "
                f"{_show(other, other['mean'])}, {_range(other)}{stale}</li>"
            )
    return (
        f'<div class="verdict verdict-{claim["verdict"]}" id="{anchor}">{_badge(claim["verdict"])} '
        f"<b>{kind} {html.escape(claim['name'])}</b>: {html.escape(claim['text'])} "
        f'<a class="claim-link" href="#{anchor}" aria-label="Permanent link to {kind} {html.escape(claim["name"])}">#'
        f"</a><br>{drawn(claim)} <small>{numbers}</small>"
        + (f'<ul class="other-profiles">{"".join(beside)}</ul>' if beside else "")
        + "</div>"
    )


def drawn(claim: Mapping[str, Any]) -> str:
    """The interval as a small bar; the dashed line is the threshold, the shaded side is the claimed one."""
    side, threshold = _side(claim)
    low, high = (claim["mean"] if end is None else end for end in (claim["low"], claim["high"]))
    reach = max(abs(low - threshold), abs(high - threshold), 1e-12) * 1.15

    def x(value: float) -> float:
        return round(80 + 78 * (value - threshold) / reach, 1)

    words = f"interval {_show(claim, low)} to {_show(claim, high)}, claimed {side} {_show(claim, threshold)}"
    return (
        f'<svg class="interval verdict-{claim["verdict"]}" viewBox="0 0 160 16" role="img" aria-label="{words}">'
        f'<rect class="claimed" x="{80 if side == "above" else 0}" y="0" width="80" height="16"/>'
        f'<line class="threshold" x1="80" x2="80" y1="0" y2="16"/>'
        f'<line class="bar" x1="{x(low)}" x2="{x(high)}" y1="8" y2="8"/>'
        f'<circle class="dot" cx="{x(claim["mean"])}" cy="8" r="3.5"/></svg>'
    )


# ---------------------------------------------------------------- explorers and the form


def _script(name: str, data: Any) -> str:
    """JSON for a script in the page; nothing in it can end the element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json"{name}>{text}</script>'


def _explorer(explorer: Mapping[str, Any], loaded: set[str]) -> str:
    """A figure that moves: its data, and the scripts that no explorer above it has brought."""
    wanted = [name for name in ("explorer", explorer["name"]) if name not in loaded]
    loaded |= set(wanted)
    return "".join(
        [
            f'<div class="explorer" data-explorer="{explorer["name"]}">{_script("", explorer["data"])}</div>',
            '<link rel="stylesheet" href="../../scripts/explorer.css">' if "explorer" in wanted else "",
            *(f'<script src="../../scripts/{name}.js" defer></script>' for name in wanted),
        ]
    )


def _rerun(study: Study) -> str:
    """A form of the notebook's parameters that composes the commands; without scripts, the plain commands."""
    path = f"notebooks/{study.part}/{study.name}.ipynb"
    lines = parameter_lines(study)
    defaults = parameters(study)
    data = {
        "study": study.name,
        "notebook": path,
        "parameters": [{"name": p.name, "default": p.default, "type": type(p.default).__name__} for p in lines],
        "profiles": {n: {**defaults, **study.profile(n)["parameters"]} for n in study.profiles},
    }
    fields = "".join(
        f'<tr><th scope="row"><label for="rerun-{p.name}">{p.name}</label></th>'
        f"<td>{_field(p.name, p.default)}</td><td>{escaped(p.help)}</td></tr>"
        for p in lines
    )
    options = "".join(f'<option value="{n}">{n}: {_needs(study, n)}</option>' for n in study.profiles)
    commands = {"studybook": f"studybook run {study.name}", "papermill": f"papermill {path} out.ipynb"}
    return "\n".join(
        [
            "## Rerun this page",
            "",
            "In a clone of the project, after `make book`: change what you like and copy the command. The second one "
            "is for papermill alone.",
            "",
            f'<form class="rerun">{_script("", data)}'
            f'<p><label for="rerun-profile">Profile</label> <select id="rerun-profile">{options}</select></p>'
            f"<details><summary>{len(lines)} parameters</summary>"
            f'<div class="table-scroll" tabindex="0" role="group" aria-label="Parameters">'
            "<table><thead><tr><th>name</th><th>value</th><th>what it is</th></tr></thead>"
            f"<tbody>{fields}</tbody></table></div></details>"
            + "".join(
                f'<div class="command" data-for="{tool}"><pre tabindex="0"><code>{command}</code></pre></div>'
                for tool, command in commands.items()
            )
            + '<output class="problem" role="alert"></output></form>',
            '<script src="../../scripts/rerun.js" defer></script>',
        ]
    )


def _field(name: str, default: Any) -> str:
    if isinstance(default, bool):
        return f'<input type="checkbox" id="rerun-{name}" name="{name}"{" checked" if default else ""}>'
    mode = ' inputmode="decimal"' if isinstance(default, int | float) else ""
    return f'<input type="text"{mode} id="rerun-{name}" name="{name}" value="{escaped(default)}">'


# ---------------------------------------------------------------- provenance


def _machine(value: Mapping[str, Any]) -> str:
    return f"{value['processor']}, {value['cores']} cores in use, {value['memory']} GiB, device {value['device']}"


def machines(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The machines on which a record's cases were measured."""
    return [json.loads(m) for m in sorted({m for one in record["sweeps"] for m in one["measured"]})]


def data_marks(record: Mapping[str, Any]) -> dict[str, str]:
    """Names and fingerprints of the data sets behind a record."""
    return {name: mark for one in record["sweeps"] for name, mark in (one["data"] or {}).items()}


def _made(shown: Entry, entries: Sequence[Entry], tables: Mapping[str, Sequence[str]]) -> str:
    study, done = shown.study, shown.record
    total = {
        key: sum(s[key] for s in done["sweeps"]) for key in ("cases", "computed", "stored", "committed", "seconds")
    }
    command = f"studybook run {study.name}" + ("" if shown.profile == QUICK else f" --profile {shown.profile}")
    command += "".join(f" -p {name} {value}" for name, value in done["overrides"].items())
    source = f"notebooks/{study.part}/{study.name}.ipynb"
    rows = {
        "profile": escaped(shown.profile),
        "parameters": escaped(", ".join(f"{name} = {value!r}" for name, value in done["parameters"].items())),
        "run": f"{done['started']}, {done['seconds']:.0f} s, peak memory {done['peak_memory_mib']:,} MiB",
        "measuring": f"{total['cases']} cases, {total['seconds']:.0f} s of measuring; {total['computed']} computed in "
        f"this run, {total['stored']} found in the store, {total['committed']} from the repository",
        "measured on": escaped("; ".join(_machine(m) for m in machines(done)) or "no sweep"),
        "page made on": escaped(_machine(done["machine"])),
        "data": escaped(", ".join(f"{name} ({mark})" for name, mark in data_marks(done).items()) or "generated"),
        "commit": f"{(done['commit'] or 'none')[:12]}{' with uncommitted changes' if done['dirty'] else ''}",
        "notebook, library": f"{done['inputs']['notebook']}, {done['inputs']['library']}",
        "versions": escaped(", ".join(f"{name} {version}" for name, version in done["versions"].items())),
        "source": f'<a href="../../{source}" download>{study.name}.ipynb</a>, '
        f'<a href="../../{source[:-5]}yml" download>{study.name}.yml</a>',
    }
    for profile, names in tables.items():
        links = [f'<a href="{_rows_file(study, profile, n)}" download>{n}.csv</a>' for n in names]
        rows[f"rows, {profile}"] = ", ".join(links)
    for entry in entries:
        rows[f"record, {entry.profile}"] = (
            f'<a href="../../data/{study.name}/{entry.profile}/run.json" download>run.json</a>'
        )
    table = "".join(f"<tr><th scope='row'>{html.escape(k)}</th><td>{v}</td></tr>" for k, v in rows.items())
    return "\n".join(
        [
            ":::{admonition} How this page was made",
            ":class: dropdown provenance",
            f'<table class="provenance">{table}</table>',
            "",
            "To run it again:",
            "```bash",
            command,
            "```",
            ":::",
        ]
    )


_CELL = 100_000  # characters; Python's csv refuses more than 131,072


def rows_csv(entries: Sequence[Mapping[str, Any]]) -> str:
    """A sweep's rows as CSV: the case's values, then what was measured; arrays as JSON to six digits.

    Of an array whose text is longer than readers of CSV take, only the shape is told.
    """
    lines = [{**entry["case"], **row} for entry in entries for row in entry["rows"]]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(line.get(name, "")) for name in columns] for line in lines)
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    shape = " x ".join(map(str, getattr(value, "shape", ())))
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | dict | tuple):
        return value
    text = json.dumps(_short(value))
    return text if len(text) <= _CELL else f"{shape or len(value)} values, too many for a cell"


def _short(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


# ---------------------------------------------------------------- all claims


def claim_facts(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Every claim of every record as one flat mapping; `claims.json` and `claims.csv` hold these."""
    found = []
    for entry in entries:
        study, record, paper = entry.study, entry.record, entry.study.about["paper"]
        used = machines(record)
        for claim in entry.claims:
            side, threshold = _side(claim)
            found.append(
                {
                    "id": f"{study.name}/{claim['name']}/{entry.profile}",
                    "part": study.part,
                    "study": study.name,
                    "title": study.about["title"],
                    "page": f"studies/{study.part}/{study.name}.html#claim-{claim['name']}",
                    "paper_key": paper["key"],
                    "paper": f"{paper['authors']} ({paper['venue']} {paper['year']})",
                    "paper_title": paper["title"],
                    "paper_url": paper["url"],
                    "claim": claim["name"],
                    "text": claim["text"],
                    "control": claim["control"],
                    "paper_number": claim["paper"],
                    "side": side,
                    "threshold": threshold,
                    **{key: claim[key] for key in ("mean", "low", "high", "n", "unit", "verdict")},
                    "profile": entry.profile,
                    "scale": study.profile(entry.profile).get("says", ""),
                    "fresh": not entry.stale,
                    "stale": ", ".join(entry.stale),
                    "recorded": record["started"],
                    "device": ", ".join(sorted({m["device"] for m in used})) or "cpu",
                    "processor": ", ".join(sorted({m["processor"] for m in used})) or record["machine"]["processor"],
                    "data": ", ".join(f"{name}:{mark}" for name, mark in data_marks(record).items()),
                    "commit": record["commit"],
                    "uncommitted_changes": record["dirty"],
                    "torch": record["versions"].get("torch", ""),
                }
            )
    return found


def claims_json(facts: Sequence[Mapping[str, Any]]) -> str:
    """`claims.json`."""
    return json.dumps({"schema": SCHEMA, "claims": facts}, indent=1, ensure_ascii=False) + "\n"


def claims_csv(facts: Sequence[Mapping[str, Any]]) -> str:
    """`claims.csv`: the same, a line a claim."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(facts[0]) if facts else ["id"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(facts)
    return out.getvalue()


def scoreboard(entries: Sequence[Entry]) -> str:
    """The scoreboard's table with its filters: every claim, the paper's number, ours, the interval, the verdict."""
    total = tally([claim for entry in entries for claim in entry.claims])
    head = ", ".join(f"**{n}** {verdict}" for verdict, n in total.items())
    parts = list(dict.fromkeys(entry.study.part for entry in entries))
    claims = {(entry.study.name, claim["name"]) for entry in entries for claim in entry.claims}
    names = list(dict.fromkeys(entry.study.name for entry in entries))
    profiles = list(dict.fromkeys(entry.profile for entry in entries))
    choices = {"part": parts, "study": names, "profile": profiles, "verdict": VERDICTS, "state": ("fresh", "stale")}
    filters = "".join(
        f'<label>{name} <select name="{name}"><option value="">all</option>'
        + "".join(f'<option value="{value}">{value}</option>' for value in values)
        + "</select></label>"
        for name, values in choices.items()
    )
    sorts = {"": "book order", "study": "study", "verdict": "verdict", "distance": "distance from the threshold",
             "recorded": "age"}  # fmt: skip
    options = "".join(f'<option value="{value}">{words}</option>' for value, words in sorts.items())
    rows = [_scoreboard_row(entry, claim) for entry in entries for claim in entry.claims]
    return "\n".join(
        [
            f"{len(claims)} claims, judged {sum(total.values())} times at {len(profiles)} profiles: {head}. "
            "To build on them: "
            '<a href="claims.json" download>claims.json</a>, <a href="claims.csv" download>claims.csv</a>, '
            "{doc}`what they hold </claims>`.",
            "",
            f'<form class="filters" hidden>{filters}'
            '<label>words <input type="search" name="words" placeholder="in claim or study"></label>'
            f'<label>sort by <select name="sort">{options}</select></label>'
            '<button type="reset">Show all</button> <output aria-live="polite"></output></form>',
            "",
            '<table class="scoreboard"><thead><tr><th scope="col">claim</th><th scope="col">paper</th>'
            '<th scope="col">ours, against the threshold</th><th scope="col">verdict</th><th scope="col">run</th>'
            "</tr></thead><tbody>",
            *rows,
            "</tbody></table>",
            '<script src="scripts/scoreboard.js" defer></script>',
            "",
        ]
    )


def _scoreboard_row(entry: Entry, claim: Mapping[str, Any]) -> str:
    study, record = entry.study, entry.record
    paper = study.about["paper"]
    control = " <i>(control)</i>" if claim["control"] else ""
    used = machines(record)
    device = ", ".join(sorted({m["device"] for m in used})) or "cpu"
    processor = "; ".join(sorted({m["processor"] for m in used})) or record["machine"]["processor"]
    state = "stale" if entry.stale else "fresh"
    place = f"studies/{study.part}/{study.name}.html#claim-{claim['name']}"
    return (
        f'<tr data-part="{study.part}" data-study="{study.name}" data-profile="{entry.profile}" data-state="{state}" '
        f'data-verdict="{claim["verdict"]}" data-distance="{distance(claim):.4g}" data-recorded="{record["started"]}">'
        f'<td><a href="{place}">{html.escape(claim["text"])}</a>{control}'
        f"<small>{study.name}, {study.part} &middot; "
        f'<a href="{html.escape(paper["url"])}">{html.escape(_short_paper(paper))}</a></small></td>'
        f'<td data-label="paper">{html.escape(claim["paper"]) or "&ndash;"}</td>'
        f'<td data-label="ours">{_show(claim, claim["mean"])} {drawn(claim)}'
        f"<small>{_range(claim)}; claimed {_side(claim)[0]} {_show(claim, _side(claim)[1])}; "
        f"{distance(claim):+.1f} arms</small></td>"
        f"<td>{_badge(claim['verdict'])}</td>"
        f'<td><code>{entry.profile}</code> <small title="{html.escape(processor)}">{html.escape(device)}, '
        f"{_when(record)}, <span class='{state}'>{state}</span>"
        f"{' (' + ', '.join(entry.stale) + ')' if entry.stale else ''}</small></td></tr>"
    )


def _short_paper(paper: Mapping[str, Any]) -> str:
    names = [name.strip() for name in paper["authors"].split(",")]
    who = names[0] if len(names) == 1 else f"{names[0]} and {names[1]}" if len(names) == 2 else f"{names[0]} et al."
    return f"{who} {paper['year']}"


def distance(claim: Mapping[str, Any]) -> float:
    """How far a claim's mean lies on the claimed side, in arms of its interval.

    Above 1 the whole interval is on the claimed side, below -1 on the other, between them the interval straddles.
    An arm without length counts as infinitely far.
    """
    side, threshold = _side(claim)
    toward = (claim["mean"] - threshold) * (1 if side == "above" else -1)
    end = claim["low"] if (toward > 0) == (side == "above") else claim["high"]
    if end is None:
        return 0.0
    arm = abs(claim["mean"] - end)
    return toward / arm if arm else math.copysign(math.inf, toward) if toward else 0.0


# ---------------------------------------------------------------- the front page


def front(entries: Sequence[Entry]) -> str:
    """The figure of the front page, every claim as a dot, and the scoreboard in brief."""
    best = _best(entries)
    figure = (
        f'<div class="table-scroll" tabindex="0" role="group" aria-label="Every claim">{_claims_figure(best)}</div>'
    )
    return "\n".join([figure, "", *_brief(best), ""])


def _best(entries: Sequence[Entry]) -> list[Entry]:
    """Of each study the record of its biggest profile."""
    return list({entry.study.name: entry for entry in entries}.values())


def _claims_figure(entries: Sequence[Entry]) -> str:
    """Every claim as a dot: how far on its claimed side, in arms of its interval; the dots are links."""
    parts = list(dict.fromkeys(entry.study.part for entry in entries))
    row, left, width = 62, 130, 720
    height = row * len(parts) + 62
    middle = left + (width - left) / 2

    def x(value: float | int) -> float:  # linear within one arm, where the verdict is open; logarithmic beyond
        size = abs(value) if abs(value) <= 1 else 1 + math.log10(min(abs(value), 1000.0))
        return middle + math.copysign(size, value) * (width - left - 48) / 8

    def place_of(far: float, column: int) -> float | int:  # columns of dots must not cross into another verdict's zone
        if abs(far) <= 1:
            return min(max(column, x(-1) + 5), x(1) - 5)
        return max(column, x(1) + 5) if far > 0 else min(column, x(-1) - 5)

    dots, labels = [], []
    for i, part in enumerate(parts):
        center = row * i + row / 2 + 26
        labels.append(f'<text class="part" x="{left - 12}" y="{center + 4}" text-anchor="end">{escaped(part)}</text>')
        taken: dict[int, int] = {}
        found = [(distance(c), e, c) for e in entries if e.study.part == part for c in e.claims]
        for far, entry, claim in sorted(found, key=lambda one: one[0]):
            column = round(x(far) / 9)
            level = taken[column] = taken.get(column, -1) + 1
            y = center + (level + 1) // 2 * 8 * (-1 if level % 2 else 1)
            words = escaped(f"{claim['verdict']}: {claim['text']} ({entry.study.name}, {entry.profile})")
            place = f"studies/{part}/{entry.study.name}.html#claim-{claim['name']}"
            dots.append(
                f'<a href="{place}" tabindex="-1" aria-hidden="true"><circle class="dot verdict-{claim["verdict"]}'
                f'{" control" if claim["control"] else ""}" cx="{place_of(far, column * 9):g}" cy="{y:g}" r="4">'
                f"<title>{words}</title></circle></a>"
            )
    total = tally([claim for entry in entries for claim in entry.claims])
    words = ", ".join(f"{n} {verdict}" for verdict, n in total.items())
    low, high = x(-1), x(1)
    return (
        f'<svg class="all-claims" viewBox="0 0 {width} {height}" role="group" '
        f'aria-label="Every claim as a dot, by part and by how far it holds: {words}. The scoreboard lists them.">'
        f'<rect class="open" x="{low:g}" y="20" width="{high - low:g}" height="{height - 60}"/>'
        f'<text class="side" x="{(left + low) / 2:g}" y="15" text-anchor="middle">contradicted</text>'
        f'<text class="side" x="{middle:g}" y="15" text-anchor="middle">inconclusive</text>'
        f'<text class="side" x="{(high + width) / 2:g}" y="15" text-anchor="middle">reproduced</text>'
        f'<line class="threshold" x1="{middle:g}" x2="{middle:g}" y1="20" y2="{height - 40}"/>'
        f"{''.join(labels)}{''.join(dots)}"
        + "".join(
            f'<text class="tick" x="{x(v):g}" y="{height - 24}" text-anchor="middle">{abs(v):,}</text>'
            for v in (-1000, -100, -10, -1, 0, 1, 10, 100, 1000)
        )
        + f'<text class="tick" x="{middle:g}" y="{height - 6}" text-anchor="middle">'
        "distance from the threshold, in arms of the interval</text></svg>"
    )


def _brief(entries: Sequence[Entry]) -> list[str]:
    rows = []
    for part in dict.fromkeys(entry.study.part for entry in entries):
        found = [entry for entry in entries if entry.study.part == part]
        total = tally([claim for entry in found for claim in entry.claims])
        count = sum(total.values())
        bar = "".join(f'<i class="verdict-{v}" style="flex-grow:{n}"></i>' for v, n in total.items() if n)
        links = " ".join(
            f'<a class="badge verdict-{v}" href="scoreboard.html?part={part}&amp;verdict={v}">{n} {v}</a>'
            for v, n in total.items()
            if n
        )
        profiles = ", ".join(sorted({f"<code>{entry.profile}</code>" for entry in found}))
        rows.append(
            f'<tr><th scope="row"><a href="parts/{part}.html">{part}</a></th><td>{len(found)}</td><td>{profiles}</td>'
            f'<td><span class="bar" aria-hidden="true">{bar}</span>{links}</td><td>{count}</td></tr>'
        )
    return [
        '<div class="table-scroll" tabindex="0" role="group" aria-label="The scoreboard in brief">'
        '<table class="brief"><thead><tr><th scope="col">part</th><th scope="col">studies</th>'
        '<th scope="col">profile</th><th scope="col">verdicts</th><th scope="col">claims</th></tr></thead><tbody>',
        *rows,
        "</tbody></table></div>",
    ]


# ---------------------------------------------------------------- the index


def index(studies: Sequence[Study], entries: Sequence[Entry]) -> str:
    """Studies by method, by data set and by paper."""
    named = {entry.study.name for entry in entries}
    lines = []
    for title, key in (("By method", "methods"), ("By data set", "data")):
        found: dict[str, list[Study]] = {}
        for study in studies:
            for word in study.about.get(key) or (["generated data"] if key == "data" else []):
                found.setdefault(str(word), []).append(study)
        lines += [f"## {title}", ""]
        for word in sorted(found, key=str.lower):
            links = ", ".join(_link(study) for study in found[word])
            lines.append(f"- **{word}**: {links}")
        lines.append("")
    lines += ["## By paper", ""]
    for study in sorted(studies, key=lambda s: (s.about["paper"]["authors"].lower(), s.about["paper"]["year"])):
        paper = study.about["paper"]
        verdicts = "" if study.name in named else " (not run)"
        lines.append(
            f"- {paper['authors']} ({paper['year']}), [{paper['title']}]({paper['url']}), {paper['venue']}: "
            f"{_link(study)}{verdicts}"
        )
    return "\n".join([*lines, ""])


def _link(study: Study) -> str:
    return f"{{doc}}`{study.about['title']} </studies/{study.part}/{study.name}>`"
