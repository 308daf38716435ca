"""Runs studies, keeps their records and builds the book: the `studybook` command.

studybook list                                   what there is
studybook run calibration -p SEEDS 5             run a study, with a parameter changed
studybook run calibration --profile standard     ... on real data
studybook build                                  the book, from what was run
studybook status                                 verdicts, age, machine; fresh or stale
studybook check calibration                      does this machine find the committed numbers again?
studybook assign calibration --student ann       an assignment of the course, with a case of the student's own
"""

import contextlib
import datetime
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import click.shell_completion

from studybook import provenance
from studybook.studies import (
    QUICK,
    Problem,
    Study,
    check_page,
    claims,
    failure,
    find,
    known,
    notebook,
    page,
    parameters,
    read_record,
    results_folder,
    root,
    typed,
    write,
)

TOLERANCE = 1e-3  # of a number in a record against the same number computed again, relative; floor 1e-4
_RECORD_VERSION = 1


# ---------------------------------------------------------------- running


def run_study(
    study: Study, profile: str, overrides: Mapping[str, Any], *, fresh: bool = False, record: bool = False,
    force: bool = False, compute: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Executes one study and writes its page and run record; returns the record.

    The page of a run that fails goes to `.studybook/failed`, with its log, and the earlier page stays. A run whose
    sources, parameters and stored rows have not changed since the last is not repeated unless `force`.
    """
    if force or record or fresh or overrides or _seems_changed(study):
        _load_libraries(compute)  # beside all that this process loads and checks
    from studybook import sweep, workers

    given = typed(study, {**study.profile(profile)["parameters"], **overrides})
    _check_needs(study, profile)
    committed = results_folder(study, profile)
    inputs = provenance.inputs(study, profile, given, committed, fresh, provenance.device())
    target, saved = page(study), page(study).with_suffix(".json")
    if not (force or record or fresh) and target.exists() and saved.exists() and not failure(study).exists():
        earlier = read_record(saved)
        if earlier.get("inputs") == inputs and not provenance.data_moved(earlier):
            return {**earlier, "unchanged": True}
    with tempfile.TemporaryDirectory(prefix="studybook-") as scratch:
        collect, out = Path(scratch) / "rows", Path(scratch) / target.name
        environment = {
            "STUDYBOOK_COLLECT": str(collect),
            "STUDYBOOK_COMMITTED": str(committed),
            "STUDYBOOK_FRESH": "1" if fresh else "",
            "STUDYBOOK_COMPUTE": "1" if compute else "0",
            "STUDYBOOK_SECONDS": json.dumps(study.profile(profile).get("cases", [])),
            **_lasting(compute),
            "IPYTHONDIR": str(_quiet_ipython(Path(scratch))),
        }
        started = datetime.datetime.now(datetime.UTC)
        clock = time.perf_counter()
        with _environment(environment), _watched(f"{study.name} [{profile}]", collect) as peak:
            _load_libraries(compute)
            try:
                _papermill(study, out, given)
            except Exception as error:
                _keep_failure(study, out, error)
        seconds = time.perf_counter() - clock
        executed = notebook(out)
        done = {
            "version": _RECORD_VERSION,
            "study": study.name,
            "part": study.part,
            "profile": profile,
            "overrides": dict(overrides),
            "parameters": {**parameters(study), **given},
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "peak_memory_mib": round(peak()),
            **_commit(),
            "inputs": inputs,
            "versions": provenance.versions(),
            "sweeps": sweep.tallies(collect),
            "claims": claims(executed["cells"]),
        }
        done["stale"] = sorted({reason for sweep in done["sweeps"] for reason in sweep["stale"]})
        done["machine"] = workers.machine()
        check_page(study, executed, done["claims"])
        _write_page(study, executed, done, collect)
        if record:
            _record(study, profile, done, collect)
    return done


def _seems_changed(study: Study) -> bool:
    """Whether a file has been touched since the page was made; a first guess, on which nothing but speed depends."""
    made = page(study).with_suffix(".json")
    sources = [study.source, study.source.with_suffix(".yml"), *Path(__file__).parent.glob("*.py")]
    return not made.exists() or any(file.stat().st_mtime > made.stat().st_mtime for file in sources)


def _load_libraries(compute: bool) -> None:
    from studybook import preload

    with _environment(_lasting(compute)):
        preload.start()


def _lasting(compute: bool) -> dict[str, str]:
    """What is the same for all kernels of a command, and read when libraries are loaded."""
    return {"PYTHONHASHSEED": "0", **({} if compute else {"HF_HUB_OFFLINE": "1"})}  # drawing downloads nothing


def _write_page(study: Study, executed: dict, done: Mapping[str, Any], collect: Path) -> None:
    """The executed copy, its record and its rows, from which the book is built."""
    from studybook import book, figures

    for cell in executed["cells"]:
        cell["metadata"].pop("papermill", None)  # times differ in every run; the record keeps them
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags:
            cell["metadata"]["tags"] = [*tags, "hide-input"]
        cell["outputs"] = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        for output in cell["outputs"]:
            if "image/svg+xml" in (found := output.get("data", {})):
                found["image/svg+xml"] = figures.lighter("".join(found["image/svg+xml"]))
        if cell["cell_type"] != "code":
            del cell["outputs"]
    executed["metadata"].pop("papermill", None)
    target = page(study)
    for name in ("rows.json", "rows.npz"):
        target.with_suffix("").mkdir(parents=True, exist_ok=True)
        if (collect / name).exists():
            shutil.copy(collect / name, target.with_suffix("") / name)
        else:
            (target.with_suffix("") / name).unlink(missing_ok=True)
    write(target, book.as_text(executed))
    write(target.with_suffix(".json"), json.dumps(done, indent=1, sort_keys=True) + "\n")
    failure(study).unlink(missing_ok=True)


def _commit() -> dict[str, Any]:
    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=root(), capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _papermill(study: Study, out: Path, given: Mapping[str, Any]) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import papermill

        logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # a kernel that died raises, too

        papermill.execute_notebook(
            str(study.source), str(out), dict(given), kernel_name="python3", language="python", cwd=str(root()),
            progress_bar=False, request_save_on_cell_execute=False,
        )  # fmt: skip


def _quiet_ipython(scratch: Path) -> Path:
    """An IPython folder without the user's startup files, whose kernel keeps its log to itself and draws SVG."""
    profile = scratch / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    settings = ["IPKernelApp.log_level = 'CRITICAL'", "InlineBackend.figure_formats = ('svg',)"]
    (profile / "ipython_kernel_config.py").write_text("".join(f"get_config().{line}\n" for line in settings))
    return profile.parent


def _keep_failure(study: Study, out: Path, error: Exception) -> None:
    log = failure(study)
    log.parent.mkdir(parents=True, exist_ok=True)
    page_so_far = log.with_name(out.name)
    if out.exists():
        shutil.copy(out, page_so_far)
    cell = getattr(error, "cell_index", None)
    if cell is None:
        what = f"{study.name} could not run: {_first_line(error)}"
    else:
        what = f"{study.name} failed in cell {cell}: {_first_line(f'{error.ename}: {error.evalue}')}"
    log.write_text(f"{what}\n{study.source}\n\n{error}\n")
    if cell is None:
        raise Problem(f"{what} (log: {_relative(log)})") from error
    raise Problem(f"{what} (page so far: {_relative(page_so_far)}, log: {_relative(log)})")


def _first_line(text: object) -> str:
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else type(text).__name__


def _relative(path: Path) -> str:
    return str(path.relative_to(root()))


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    earlier = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _watched(title: str, collect: Path) -> Iterator[Any]:
    """Shows a bar over the sweep's cases and samples the memory of this process and its kernel; gives the peak.

    Where another `studybook run` draws one bar for several studies, it gets the sweep's state instead.
    """
    import psutil

    from studybook import preload, sweep

    peak, stop, parent = [0.0], threading.Event(), os.getppid()
    elsewhere = os.environ.get("STUDYBOOK_PROGRESS")

    def memory() -> float:
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss if process.pid not in preload.servers() else 0
        return total / 2**20

    def watch() -> None:
        bar, total = None, None
        while not stop.wait(0.5):
            peak[0] = max(peak[0], memory())
            if elsewhere and os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGINT)  # nobody waits for this study any more
            with contextlib.suppress(OSError, ValueError):
                state = json.loads((collect / "progress.json").read_text())
                if elsewhere:
                    write(Path(elsewhere), json.dumps(state))
                    continue
                if state["total"] != total:  # the study's next sweep
                    if bar:
                        bar.close()
                    bar, total = sweep.Bar(title), state["total"]
                if bar:
                    bar.show(**state)
                    if state["done"] >= total:  # figures follow, which the bar knows nothing of
                        bar.close()
                        bar = None
        if bar:
            bar.close()

    if not elsewhere:
        click.echo(f"{title}: running", err=True)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        thread.join()


def _check_needs(study: Study, profile: str) -> None:
    needs = study.profile(profile).get("needs", {})
    if needs.get("gpu") and provenance.device() == "cpu" and os.environ.get("STUDYBOOK_DEVICE") != "cpu":
        where = "no worker has one" if os.environ.get("STUDYBOOK_SCHEDULER") else "torch sees none here"
        raise Problem(
            f"{study.name} [{profile}] needs a GPU and {where}; "
            "to run it on the CPU all the same, however long it takes, set STUDYBOOK_DEVICE=cpu"
        )


def _record(study: Study, profile: str, done: Mapping[str, Any], collect: Path) -> None:
    """Commits nothing itself: writes record and rows to where they are committed from."""
    folder = results_folder(study, profile)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("rows.json", "rows.npz") if profile != QUICK else ():
            if (collect / name).exists():
                shutil.copy(collect / name, folder / f"{name}.part")
                (folder / f"{name}.part").replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        write(folder / "run.json", json.dumps(done, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise Problem(f"{study.name}: the run is done, but {folder} cannot be written ({error.strerror})") from None


# ---------------------------------------------------------------- check


def compare(committed: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences between two records of one study, number by number within TOLERANCE and verdict by verdict."""
    found = []
    old, new = ({claim["name"]: claim for claim in record["claims"]} for record in (committed, now))
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            found.append(f"{name}: only in the {'committed' if name in old else 'new'} record")
            continue
        if old[name]["verdict"] != new[name]["verdict"]:
            found.append(f"{name}: verdict {old[name]['verdict']}, now {new[name]['verdict']}")
        for number in ("mean", "low", "high", "n"):
            a, b = old[name][number], new[name][number]
            if (a is None) != (b is None) or a is not None and abs(a - b) > max(1e-4, TOLERANCE * abs(a)):
                found.append(f"{name}: {number} {a}, now {b}")
    return found


# ---------------------------------------------------------------- the command


class _Studies(click.ParamType):
    """A study's name, with tab completion."""

    name = "study"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list:
        return [click.shell_completion.CompletionItem(name) for name in known() if name.startswith(incomplete)]


_FILE = click.Path(exists=True, dir_okay=False)
_TOGETHER = 4  # studies that share workers run at once: each is a kernel of about a gigabyte
_HELP = __doc__.replace("\n\n", "\n\n\b\n")  # click: keep the lines as they are


@click.group(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The `studybook` command; its help is the module's docstring."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))


@main.command("list")
def _list() -> None:
    """What studies there are, with paper, profiles and how long they take."""
    from studybook import sweep

    for study in known().values():
        paper = study.about["paper"]
        click.echo(f"{study.part}/{click.style(study.name, bold=True)}: {study.about['title']}")
        click.echo(f"    {paper['authors']} ({paper['venue']} {paper['year']})")
        for name in study.profiles:
            profile = study.profile(name)
            click.echo(f"    {name:9} {profile.get('says', '')}, about {sweep.duration(profile.get('seconds', 0))}")


@main.command("run")
@click.argument("names", nargs=-1, type=_Studies(), metavar="[STUDY]...")
@click.option("--all", "everything", is_flag=True, help="Run every study.")
@click.option("--profile", default=QUICK, show_default=True, help="How big: quick, standard or full.")
@click.option(
    "-p", "given", type=(str, str), multiple=True, metavar="NAME VALUE", help="Change a parameter; repeatable."
)
@click.option("--fresh", is_flag=True, help="Measure again what the repository's stored rows no longer fit.")
@click.option("--force", is_flag=True, help="Execute the notebook even if nothing has changed.")
@click.option("--record", is_flag=True, help="Write rows and record to book/results, to be committed.")
@click.option("--drawn", is_flag=True, help="Compute nothing: draw from committed rows, or quick where there are none.")
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", envvar="STUDYBOOK_WORKERS", show_envvar=True,
    help="Measure on N Dask workers of this machine; one per GPU where there are GPUs.",
)  # fmt: skip
@click.option(
    "--scheduler", metavar="ADDRESS", envvar="STUDYBOOK_SCHEDULER", show_envvar=True,
    help="Measure on the workers of this Dask scheduler: tcp://HOST:8786, tls:// or its file.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", envvar="STUDYBOOK_THREADS", show_envvar=True,
    help="Threads of a case; cores // workers unless given.",
)  # fmt: skip
@click.option(
    "--share-gpu", is_flag=True, envvar="STUDYBOOK_SHARE_GPU", show_envvar=True, help="Let several cases use one GPU."
)
@click.option("--tls-ca-file", type=_FILE, metavar="PEM", help="For tls://: who signed the cluster's certificates.")
@click.option("--tls-cert", type=_FILE, metavar="PEM", help="For tls://: this machine's certificate.")
@click.option("--tls-key", type=_FILE, metavar="PEM", help="For tls://: its key, if not in the certificate's file.")
def _run(
    names: Sequence[str], everything: bool, profile: str, given: Sequence[tuple[str, str]], fresh: bool, force: bool,
    record: bool, drawn: bool, **places: Any,
) -> None:  # fmt: skip
    """Run studies and write their pages and records."""
    chosen = list(known().values()) if everything else [find(name) for name in names]
    if not chosen:
        raise Problem("name a study (studybook list shows them), or give --all")
    if record and given:
        raise Problem("--record keeps a profile as it stands; it cannot be combined with -p")
    overrides = dict(given)
    jobs = []
    for study in chosen:  # refuse before anything runs
        typed(study, {**study.profile(profile)["parameters"], **overrides})
        missing = drawn and profile != QUICK and not (results_folder(study, profile) / "rows.json").exists()
        if missing:
            click.echo(f"{study.name}: the repository has no rows of its {profile} profile; drawing quick", err=True)
        jobs.append((study, QUICK if missing else profile))
    with _ended_kindly(), _measured_on(**places) as on_workers:
        if on_workers and len(jobs) > 1:
            words = [word for name, value in given for word in ("-p", name, value)]
            flags = {"--fresh": fresh, "--force": force, "--record": record}
            failed = _together(jobs, [*words, *(flag for flag, on in flags.items() if on)], drawn)
        else:
            failed = [
                study.name
                for study, use in jobs
                if not _run_one(
                    study, use, overrides, fresh=fresh, record=record, force=force, compute=not drawn or use == QUICK
                )
            ]
    if failed and len(jobs) > 1:
        raise Problem(f"{len(failed)} of {len(chosen)} studies failed: {', '.join(failed)}")
    if failed:
        sys.exit(1)


def _run_one(study: Study, profile: str, overrides: Mapping[str, str], **how: bool) -> bool:
    """Runs one study and says how it went; False if it failed. Ctrl-C ends the command."""
    try:
        done = run_study(study, profile, typed(study, overrides), **how)
    except Problem as problem:
        problem.show()
        return False
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the dead kernel's task would complain at exit
        _say_interrupted(study.name)
        sys.exit(130)
    from studybook import pages

    tally = ", ".join(f"{n} {verdict}" for verdict, n in pages.tally(done["claims"]).items() if n)
    took = "unchanged" if done.get("unchanged") else f"{done['seconds']:.0f} s"
    stale = f", stale ({', '.join(done['stale'])})" if done["stale"] else ""
    click.echo(f"{study.name} [{profile}]: {tally} ({took}{stale})")
    return True


def _say_interrupted(what: str) -> None:
    click.echo(f"\n{what}: interrupted; finished cases are stored, the same command goes on from there", err=True)


@contextlib.contextmanager
def _ended_kindly() -> Iterator[None]:
    """Ctrl-C, and the SIGTERM with which batch systems end a job, end the command with one sentence and code 130."""
    earlier = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        _say_interrupted("studybook")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextlib.contextmanager
def _measured_on(
    workers: int | None, scheduler: str | None, threads: int | None, share_gpu: bool, tls_ca_file: str | None,
    tls_cert: str | None, tls_key: str | None,
) -> Iterator[bool]:  # fmt: skip
    """Lets kernels that start inside measure on the workers asked for, which are checked first; gives whether any are.

    Workers of this machine live as long as this block.
    """
    if workers and scheduler:
        raise Problem(
            "--workers (STUDYBOOK_WORKERS) starts workers here and --scheduler (STUDYBOOK_SCHEDULER) uses those of "
            "another: give one of the two"
        )
    environment = {"STUDYBOOK_WORKERS": "", "STUDYBOOK_THREADS": str(threads or "")}
    environment |= {"STUDYBOOK_SHARE_GPU": "1"} if share_gpu else {}
    tls = {"CA_FILE": tls_ca_file, "CLIENT__CERT": tls_cert, "CLIENT__KEY": tls_key or tls_cert}
    environment |= {f"DASK_DISTRIBUTED__COMM__TLS__{name}": file for name, file in tls.items() if file}
    if not (workers or scheduler):
        environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        with _environment(environment):
            yield False
        return
    from studybook import workers as dask

    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(environment))
        try:
            if workers:
                click.echo(f"starting {workers} worker{'s' * (workers > 1)}", err=True)
                scheduler = stack.enter_context(dask.local(workers, threads, share_gpu))
            stack.enter_context(_environment({"STUDYBOOK_SCHEDULER": scheduler}))
            with dask.team(lambda words: click.echo(words, err=True)) as team:
                if workers:
                    stack.enter_context(_environment({"STUDYBOOK_THREADS": str(team.threads)}))
                if not os.environ.get("STUDYBOOK_PROGRESS"):
                    click.echo(team.describe(), err=True)
        except (dask.Unfit, dask.Lost, ConnectionError, ImportError, ValueError) as error:
            raise Problem(str(error)) from None
        yield True


def _together(jobs: Sequence[tuple[Study, str]], words: Sequence[str], drawn: bool) -> list[str]:
    """Runs several studies at a time, the longest first, as commands of their own; gives those that failed.

    Their cases share the workers, so none of these stands idle while a study starts or draws its figures.
    """
    from studybook import sweep

    todo = sorted(jobs, key=lambda job: -job[0].profile(job[1]).get("seconds", 0))
    running: dict[str, tuple[subprocess.Popen, Path, Path]] = {}
    failed, bar = [], sweep.Bar(f"{len(jobs)} studies")
    ended = {"done": 0, "total": 0, "failed": 0}
    with tempfile.TemporaryDirectory(prefix="studybook-") as scratch, contextlib.closing(bar):
        try:
            while todo or running:
                while todo and len(running) < _TOGETHER:
                    study, use = todo.pop(0)
                    file, log = Path(scratch) / f"{study.name}.json", Path(scratch) / f"{study.name}.log"
                    command = [sys.executable, "-m", "studybook.runner", "run", study.name, "--profile", use, *words]
                    with log.open("w") as out:
                        process = subprocess.Popen(
                            [*command, *["--drawn"] * (drawn and use != QUICK)], cwd=root(), stdout=out,
                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                            env={**os.environ, "STUDYBOOK_PROGRESS": str(file), "STUDYBOOK_ROOT": str(root())},
                        )  # fmt: skip
                    running[study.name] = (process, file, log)
                time.sleep(0.2)
                states = {name: _state(file) for name, (_, file, _) in running.items()}
                for name, (process, _, log) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[name]
                    for key in ended:
                        ended[key] += states[name].get(key, 0)
                    bar.clear()
                    click.echo(log.read_text().strip())
                    failed += [name] if process.returncode else []
                now = [states[name] for name in running if states[name]]
                left = [state["left"] for state in now if state["left"]]
                bar.show(
                    **{key: ended[key] + sum(state[key] for state in now) for key in ended},
                    left=max(left, default=None), words=next((s["words"] for s in now), ""),
                )  # fmt: skip
        except KeyboardInterrupt:
            for process, _, _ in running.values():
                process.send_signal(signal.SIGINT)
            for process, _, _ in running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(15)
                process.kill()
            _say_interrupted(", ".join(running))
            sys.exit(130)
    return failed


def _state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {**state, "done": state["done"] + state["before"], "total": state["total"] + state["before"]}


@main.command("build")
@click.option("--pdf", is_flag=True, help="Also print the whole book to one PDF; needs Chromium.")
@click.option("--archive", is_flag=True, help="Also pack the pages into a ZIP file that opens from any folder.")
@click.option("--without-answers", is_flag=True, help="Leave out the answers to exercises: an edition for students.")
def _build(pdf: bool, archive: bool, without_answers: bool) -> None:
    """Build the book's pages from the studies that were run."""
    from studybook import book

    for name, file in book.build(pdf, archive, not without_answers).items():
        click.echo(f"the {name} is at {_relative(file)}")


@main.command("status")
def _status() -> None:
    """Verdicts, age and machine of every study and profile, fresh or stale."""
    from studybook import book, pages

    there = {(record["study"], record["profile"]): record for record in book.records()}
    for study in known().values():
        for profile in study.profiles:
            record = there.get((study.name, profile))
            if record is None:
                click.echo(f"{study.name:24} {profile:9} not run")
                continue
            tally = ", ".join(f"{n} {verdict}" for verdict, n in pages.tally(record["claims"]).items() if n)
            days = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(record["started"])).days
            devices = sorted({json.loads(m)["device"] for s in record["sweeps"] for m in s["measured"]})
            state = provenance.moved_on(record)
            freshness = f"stale ({', '.join(state)})" if state else "fresh"
            click.echo(f"{study.name:24} {profile:9} {tally}; {days} days old; {', '.join(devices)}; {freshness}")


@main.command("check")
@click.argument("name", type=_Studies(), metavar="STUDY")
def _check(name: str) -> None:
    """Compute a study's quick profile anew and compare it with the committed record."""
    study = find(name)
    file = results_folder(study, QUICK) / "run.json"
    if not file.exists():
        raise Problem(f"{name} has no committed quick record: studybook run {name} --record writes it")
    committed = read_record(file)
    threads = str(
        committed["machine"]["cores"]
    )  # another number of threads rounds differently, and training amplifies it
    here = {"OMP_NUM_THREADS": threads, "STUDYBOOK_SCHEDULER": "", "STUDYBOOK_WORKERS": "", "STUDYBOOK_THREADS": ""}
    with tempfile.TemporaryDirectory(prefix="studybook-") as empty, _environment({"STUDYBOOK_CACHE": empty, **here}):
        now = run_study(study, QUICK, {}, force=True)
    if found := compare(committed, now):
        listed = "\n".join(f"  {line}" for line in found)
        there = committed["machine"]["processor"]
        raise Problem(
            f"{name} differs from its committed quick record (tolerance {TOLERANCE:.1%}; that was made on {there}, "
            f"this is {now['machine']['processor']}):\n{listed}"
        )
    click.echo(f"{name}: {len(now['claims'])} claims agree with the committed record within {TOLERANCE:.1%}")


class _Assignments(click.ParamType):
    """An assignment's name, completed by the shell."""

    name = "assignment"

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        from studybook import course

        found = course.assignments(ctx.params.get("folder") or root() / "book" / "course")
        return [click.shell_completion.CompletionItem(name) for name in found if name.startswith(incomplete)]


@main.command("assign")
@click.argument("names", nargs=-1, required=True, type=_Assignments(), metavar="ASSIGNMENT...")
@click.option("--student", "students", multiple=True, metavar="ID", help="A student's or group's id; repeatable.")
@click.option("--roster", type=_FILE, metavar="FILE", help="Ids one a line, or a CSV file with a column id.")
@click.option(
    "--course", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
    help="The course's folder, with source/ and nbgrader_config.py; the book's own unless given.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write folders again that were handed out.")
def _assign(
    names: Sequence[str], students: Sequence[str], roster: str | None, folder: Path | None, force: bool
) -> None:
    """Make an assignment: release/ASSIGNMENT, and handout/ID/ASSIGNMENT with another case for each student.

    The id alone decides the case, so nbgrader grades each submission by what that student was given. Folders that are
    there stay; an interrupted run goes on.
    """
    from tqdm import tqdm

    from studybook import course

    folder = folder or root() / "book" / "course"
    ids = list(dict.fromkeys([*students, *(course.roster(Path(roster)) if roster else [])]))
    for one in ids:
        course.student_id(one)
    if unknown := sorted(set(names) - set(course.assignments(folder))):
        allowed = ", ".join(course.assignments(folder)) or "none"
        raise Problem(f"{folder.resolve().name} has no assignment {unknown[0]!r}; it has: {allowed}")
    with _ended_kindly():
        for name in names:
            _release(folder, name)
            made = course.hand_out(folder, name, tqdm(ids, name, delay=2, leave=False), force)
            click.echo(f"{name}: {_below_here(folder / 'release' / name)}, the same for everyone")
            if ids:
                kept = f" ({len(ids) - len(made)} were there)" * (len(made) < len(ids))
                places = f"{_below_here(folder / 'handout')}/ID/{name}"
                click.echo(f"{name}: {len(made)} of {len(ids)} folders {places}{kept}")


def _below_here(path: Path) -> str:
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _release(folder: Path, name: str) -> None:
    """Lets nbgrader make `release/<name>`, unless it is newer than what it is made of."""
    made = folder / "release" / name
    parts = [*(folder / "source" / name).rglob("*"), folder / "cases" / f"{name}.py", folder / "nbgrader_config.py"]
    newest = max(part.stat().st_mtime for part in parts if part.exists())
    if (made / "case.npz").exists() and min(f.stat().st_mtime for f in made.iterdir()) >= newest:
        return
    command = [sys.executable, "-m", "nbgrader", "generate_assignment", name, "--force"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not (made / "case.npz").exists():
        said = [line.strip() for line in done.stderr.splitlines() if re.match(r" *\w*(Error|Exception)\b.*: ", line)]
        if "No module named nbgrader" in done.stderr:
            said = ['the course needs nbgrader: pip install -e ".[course]"']
        raise Problem(f"nbgrader could not make {name}: {said[-1] if said else done.stderr.strip()[-300:]}")


if __name__ == "__main__":
    main()
