"""`shaping-sweeps verify | gc | show | sync | measure | contamination`: the content of a store, and its upkeep."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.errors import StageFailure, UserError
from sweeps.commands.shared_arguments import AsJson, Filters, Overrides, StorePath, app, console
from sweeps.execute.display import amount
from sweeps.monitor.status import rows
from sweeps.store.stage_runs import Store, StoredRun


@app.command()
def verify(
    filters: Filters = None,
    store: StorePath = "store",
    *,
    redo: Annotated[
        bool, typer.Option("--redo", help="Remove what is broken and what descends from it, and run both again.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Check every published file against its hash and every spec against its signature. Exits with 1 for a fault."""
    from sweeps.monitor.upkeep import descendants, faults, input_faults

    opened = Store.open(store)
    selected = {row.signature for row in rows(opened, filters)} if filters else None
    unlisted: list[UserError] = []
    folders = list(opened.folders(unlisted))
    runs = [run for run in folders if selected is None or run.signature in selected]
    found = {run: [*faults(run), *input_faults(run, opened)] for run in runs}
    faulty = {run: entries for run, entries in found.items() if entries}
    sources = [run.signature for run, entries in faulty.items() if any(fault.spreads for fault in entries)]
    doubtful = descendants(folders, sources)
    if as_json:
        sentences = {run.signature: [fault.sentence for fault in entries] for run, entries in faulty.items()}
        report = {"checked": len(runs), "faults": sentences, "descendants": doubtful}
        print(json.dumps(report | {"unreadable": [str(error) for error in unlisted]}, indent=1))
    else:
        _print_faults([fault.sentence for entries in faulty.values() for fault in entries], doubtful, unlisted)
        print(f"{len(runs)} stage runs checked, {len(faulty)} with faults, {len(doubtful)} descend from those")
    broken = {run.signature for run, entries in faulty.items() if any(fault.is_broken for fault in entries)}
    if redo:
        _redo(opened, [run for run in folders if run.signature in broken | doubtful.keys()])
        # The others need their owner, or one file to be deleted.
        return int(bool(unlisted) or bool(faulty.keys() - {run for run in runs if run.signature in broken}))
    if broken and not as_json:
        print("shaping-sweeps verify --redo runs the broken ones again, and what descends from them")
    return int(bool(faulty or unlisted))


def _print_faults(sentences: list[str], doubtful: dict[str, str], unlisted: list[UserError]) -> None:
    for line in (*map(str, unlisted), *sentences):
        print(line)
    for signature, ancestor in doubtful.items():
        print(f"{signature}: it descends from {ancestor}")


def _redo(store: Store, runs: list[StoredRun]) -> None:
    """Remove stage runs and launch them again, parents first."""
    from sweeps.commands.retry import launch_again
    from sweeps.monitor.upkeep import discard

    if not runs:
        print("Nothing to run again")
        return
    removed = {run.signature for run in runs if discard(run)}
    if held := [run.signature for run in runs if run.signature not in removed]:
        print(f"{', '.join(held)}: a worker is writing to them now; verify again when it has ended", file=sys.stderr)
    print(f"{len(removed)} stage runs removed; they run again now")
    launch_again(store, removed, {row.signature: row for row in rows(store)})


@app.command()
def gc(
    store: StorePath = "store",
    *,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also remove whole stage runs that no named sweep needs.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; by default they are only listed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free space: remove trainer states of stage runs that no named sweep needs, with --weights the whole stage runs,
    and what killed commands left.

    Named sweeps are those that were launched into this store with +sweep=NAME, and all of conf/sweep. What is queued or
    running, and what that needs, stays too.
    """
    from sweeps.commands.retry import needed_by
    from sweeps.monitor.launched_sweeps import needed, records
    from sweeps.monitor.upkeep import leftovers, needed_by_named_sweeps, removable, remove

    opened = Store.open(store)
    # Stage runs may have been copied from another store, where their sweep was launched, so conf/sweep counts too.
    keep = needed(sweep for sweep in records(opened, strict=True) if sweep.name) | needed_by_named_sweeps()
    # A job that waits in Slurm's queue has no live writer, and may be about to resume.
    all_rows = {row.signature: row for row in rows(opened)}
    for row in all_rows.values():
        if row.status in ("queued", "running"):
            keep |= needed_by(row.signature, all_rows)
    items = [*removable(opened, keep, weights=weights), *leftovers(opened)]
    total = sum(item.bytes for item in items)
    if yes:
        remove(items)
    if as_json:
        table = [{"path": str(item.path), "bytes": item.bytes, "what": item.what} for item in items]
        print(json.dumps({"removed": yes, "bytes": total, "items": table}, indent=1))
        return
    for item in items:
        print(f"{amount(item.bytes):>10}  {item.what}  {item.path}")
    print(f"{amount(total)} in {len(items)} folders " + ("removed" if yes else "can be removed; --yes removes them"))


@app.command()
def show(
    signature: Annotated[str, typer.Argument(help="A signature, or its first characters.")],
    store: StorePath = "store",
) -> None:
    """Print one stage run as JSON: its configuration, state and result."""
    run = find(Store.open(store), signature)
    content = {"folder": str(run.folder), **run.spec, "state": run.readable_state, "result": run.result}
    print(json.dumps(content, indent=1))


@app.command()
def sync(
    store: Annotated[str, typer.Option(help="Folder of stage runs.")] = "store",
    *,
    project: Annotated[str | None, typer.Option(help="W&B project; by default the project of each run.")] = None,
    entity: Annotated[str | None, typer.Option(help="W&B user or team.")] = None,
    artifacts: Annotated[bool, typer.Option(help="Also send specs, results, ledgers and samples.")] = False,
    checkpoints: Annotated[bool, typer.Option(help="Include checkpoints in the artifacts; they are large.")] = False,
) -> None:
    """Send offline W&B runs with their evaluations, and with --artifacts the files of stage runs.

    If it stops, the same command resumes.
    """
    from sweeps.monitor.wandb_sync import add_evaluations, send_artifacts, send_runs

    terminal = console()
    opened = Store.open(store)
    sent = send_runs(opened, project=project, entity=entity, report=terminal.print)
    terminal.print(f"{len(sent.runs)} runs sent, {sent.already} were sent before, {len(sent.failed)} wait")
    if sent.failed:
        raise StageFailure(f"sync: {len(sent.failed)} runs were not sent ({sent.error}); the same command resumes")
    added = add_evaluations(opened, project=project, entity=entity, report=terminal.print)
    terminal.print(f"{len(added)} evaluations added to the runs of what they measure")
    if artifacts or checkpoints:
        names = send_artifacts(
            opened, project=project or "shaping", entity=entity, checkpoints=checkpoints, report=terminal.print
        )
        terminal.print(f"{len(names)} artifacts sent")


@app.command()
def measure(
    filters: Filters = None,
    *,
    store: StorePath = "store",
    k: Annotated[str, typer.Option("--k", help="The k of Pass@k, separated by commas, or `all`.")] = "1",
    as_json: AsJson = False,
) -> None:
    """Compute Avg@n, Cons@n and Pass@k again from the samples that evaluations have stored; needs no model."""
    from pipelines.evaluation.samples import SAMPLES

    opened = Store.open(store)
    if k != "all" and not all(part.strip().isdigit() and int(part) > 0 for part in k.split(",")):
        raise UserError(f"--k={k}: name whole numbers above 0, such as --k=1,4,16, or all")
    # Only finished evaluations whose samples are stored.
    table: list[dict[str, Any]] = []
    faults = []
    for row in rows(opened, ["stage=evaluate", *(filters or [])]):
        run = opened.run("evaluate", row.signature)
        try:
            if path := run.published(SAMPLES):
                labels = {"stage_run": row.signature, "what": row.title}
                table += [labels | measurement for measurement in _measurements(path, k)]
        except UserError as error:
            faults.append(str(error))
    if as_json:
        print(json.dumps(table, indent=1))
    for entry in table if not as_json else ():
        low, high = entry["low"], entry["high"]
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        print(f"{entry['what']}  {entry['benchmark']}  {entry['metric']}  {entry['value']:.4f}{interval}")
    if not table and not faults and not as_json:
        print("None of the selected evaluations has stored samples")
    if faults:
        raise StageFailure("\n".join(faults))


def _measurements(path: Path, k: str) -> Iterator[dict[str, Any]]:
    """Yields the measurements of the samples in a file, for the k of Pass@k that `k` lists."""
    from pipelines.evaluation.samples import measure, read_rows

    samples: dict[str, list[dict[str, Any]]] = {}
    for sample in read_rows(path):
        samples.setdefault(sample["benchmark"], []).append(sample)
    for benchmark, of_benchmark in samples.items():
        ks = list(range(1, len(of_benchmark) + 1)) if k == "all" else [int(part) for part in k.split(",")]
        for metric, estimate in measure(of_benchmark, ks).items():
            yield {"benchmark": benchmark, "metric": metric, **estimate._asdict()}


@app.command()
def contamination(
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", help="Length in words of the n-grams that are compared.")] = 13,
    as_json: AsJson = False,
) -> None:
    """Count, for each benchmark and RL data set, the items that share an n-gram with the training data of all cells.

    Token shards are decoded while they are read. Prepares the data if the store does not have them, and loads torch.
    Benchmarks without a local data set are listed.
    """
    from pipelines.configuration import TOKEN_STAGES
    from pipelines.data.contamination import overlap
    from pipelines.data.corpus import prepare
    from pipelines.data.questions import load_questions
    from pipelines.evaluation.evaluate import evaluation_texts
    from sweeps.compose.cells import compose_cells

    if n < 5:
        raise UserError(f"-n={n}: it must be 5 or more, because any text shares shorter n-grams by chance")
    cells = compose_cells(list(overrides or []))
    cell = cells[0]
    for other in cells:
        if (other.data, other.evaluation, other.grpo.tasks) != (cell.data, cell.evaluation, cell.grpo.tasks):
            raise UserError(
                "contamination: the cells differ in data, evaluation or grpo.tasks; run it for one of each at a time"
            )
    corpus = prepare(cell.data, Store.create(cell.store).cache)
    texts, missing = evaluation_texts(cell.evaluation, corpus)
    for task in cell.grpo.tasks:
        try:
            texts[f"grpo {task}"] = [
                question.question for split in ("rl", "validation") for question in load_questions(task, split, corpus)
            ]
        except UserError as error:  # this task has no questions here; the report says so
            missing[f"grpo {task}"] = str(error)
    # All sources that any token stage of any cell trains on.
    mixtures = [getattr(cell, stage).mixture for cell in cells for stage in TOKEN_STAGES]
    sources = {source for mixture in mixtures for source, weight in mixture.items() if weight > 0}
    report = overlap(texts, corpus.training_texts(sorted(sources)), n)
    if as_json:
        print(json.dumps({"n": n, "benchmarks": report, "missing": missing}, indent=1))
        return
    print(f"{'benchmark':20}{'items':>8}{'too short':>11}{'contaminated':>14}")
    for name, counts in report.items():
        share = "not measured" if counts["contaminated"] is None else f"{counts['contaminated']:.1%}"
        print(f"{name:20}{counts['items']:>8}{counts['short']:>11}{share:>14}")
    for name, reason in missing.items():
        print(f"{name} is missing: {reason}")


def find(store: Store, signature: str) -> StoredRun:
    """Returns the one stored stage run whose signature begins so; raises `UserError` for none or several."""
    matches = [run for run in store.folders([]) if run.signature.startswith(signature) and run.folder.is_dir()]
    if len(matches) != 1:
        count = f"{len(matches)} signatures begin so; type more characters" if matches else "no signature begins so"
        raise UserError(f"{signature}: {count}; shaping-sweeps status lists them")
    return matches[0]
