"""`shaping-sweeps verify | gc | show | sync | measure | contamination`: what a store holds, and its upkeep."""

import json
from typing import Annotated, Any

import typer

from pipelines.errors import StageFailure, UserError
from sweeps.commands.application import AsJson, Filters, Overrides, StorePath, app, console
from sweeps.execute.display import amount
from sweeps.monitor.status import rows
from sweeps.store.stage_runs import Store, StoredRun


@app.command()
def verify(filters: Filters = None, store: StorePath = "store", as_json: AsJson = False) -> int:
    """Check every published file against its hash and every spec against its signature. Exits with 1 for a fault."""
    from sweeps.monitor.upkeep import faults

    opened = Store.open(store)
    wanted = {row.signature for row in rows(opened, filters)} if filters else None
    found: dict[str, list[str]] = {}
    checked = 0
    for run in opened.runs():
        if wanted is None or run.signature in wanted:
            checked += 1
            if wrong := list(faults(run)):
                found[run.signature] = wrong
    if as_json:
        print(json.dumps({"checked": checked, "faults": found}, indent=1))
    else:
        for sentences in found.values():
            print("\n".join(sentences))
        print(f"{checked} stage runs checked, {len(found)} with faults")
        if found:
            print("Delete the folder of each, and the same sweep makes it again")
    return int(bool(found))


@app.command()
def gc(
    store: StorePath = "store",
    weights: Annotated[
        bool, typer.Option("--weights", help="Also whole stage runs that no named sweep needs.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; otherwise only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free space: trainer states of stage runs that no named sweep needs, then, with --weights, those stage runs.

    Named sweeps are those launched by +sweep=NAME into this store and those of conf/sweep.
    """
    from sweeps.monitor.launched_sweeps import needed, records
    from sweeps.monitor.upkeep import needed_by_named_sweeps, removable, remove

    opened = Store.open(store)
    keep = needed(sweep for sweep in records(opened) if sweep.name) | needed_by_named_sweeps()
    items = list(removable(opened, keep, weights=weights))
    total = sum(item.bytes for item in items)
    if yes:
        remove(items)
    if as_json:
        listed = [{"path": str(i.path), "bytes": i.bytes, "what": i.what} for i in items]
        print(json.dumps({"removed": yes, "bytes": total, "items": listed}, indent=1))
        return
    for item in items:
        print(f"{amount(item.bytes):>10}  {item.what}  {item.path}")
    print(f"{amount(total)} in {len(items)} places " + ("removed" if yes else "would go; --yes removes it"))


@app.command()
def show(
    signature: Annotated[str, typer.Argument(help="A stage run's signature, or the beginning of one.")],
    store: StorePath = "store",
) -> None:
    """Show one stage run: its configuration, state and results."""
    run = find(Store.open(store), signature)
    print(json.dumps({"folder": str(run.folder), **run.spec, "state": run.state, "result": run.result}, indent=1))


@app.command()
def sync(
    store: Annotated[str, typer.Option(help="Folder of stage runs.")] = "store",
    project: Annotated[str | None, typer.Option(help="W&B project; that of the runs where none is named.")] = None,
    entity: Annotated[str | None, typer.Option(help="W&B user or team.")] = None,
    artifacts: Annotated[bool, typer.Option(help="Send specs, results, ledgers and samples as artifacts too.")] = False,
    checkpoints: Annotated[bool, typer.Option(help="Put checkpoints into the artifacts; they are large.")] = False,
) -> None:
    """Send offline W&B runs, and on request the stage runs' files with their lineage; the same command goes on."""
    from sweeps.monitor.wandb_sync import send_artifacts, send_runs

    terminal = console()
    opened = Store.open(store)
    sent = send_runs(opened, project=project, entity=entity, report=terminal.print)
    terminal.print(f"{len(sent.runs)} runs sent, {sent.already} were sent before, {len(sent.failed)} wait")
    if sent.failed:
        raise StageFailure(f"sync: {len(sent.failed)} runs were not sent ({sent.error}); the same command goes on")
    if artifacts or checkpoints:
        names = send_artifacts(
            opened, project=project or "shaping", entity=entity, checkpoints=checkpoints, report=terminal.print
        )
        terminal.print(f"{len(names)} artifacts sent")


@app.command()
def measure(
    filters: Filters = None,
    store: StorePath = "store",
    k: Annotated[str, typer.Option("--k", help="The k of Pass@k, with commas, or `all`.")] = "1",
    as_json: AsJson = False,
) -> None:
    """Compute Avg@n, Cons@n and Pass@k anew from the samples that evaluations have stored; needs no model."""
    from pipelines.evaluation.samples import SAMPLES, measure, read_rows

    opened = Store.open(store)
    if k != "all" and not all(part.strip().isdigit() and int(part) > 0 for part in k.split(",")):
        raise UserError(f"--k={k}: name whole numbers above 0, such as --k=1,4,16, or all")
    listed: list[dict[str, Any]] = []
    for row in rows(opened, ["stage=evaluate", *(filters or [])]):
        path = opened.run("evaluate", row.signature).folder / SAMPLES
        if row.status != "done" or not path.exists():
            continue
        samples: dict[str, list[dict[str, Any]]] = {}
        for sample in read_rows(path):
            samples.setdefault(sample["benchmark"], []).append(sample)
        for benchmark, own in samples.items():
            ks = list(range(1, len(own) + 1)) if k == "all" else [int(part) for part in k.split(",")]
            for metric, found in measure(own, ks).items():
                place = {"stage_run": row.signature, "what": row.title, "benchmark": benchmark, "metric": metric}
                listed.append(place | found._asdict())
    if as_json:
        print(json.dumps(listed, indent=1))
        return
    for entry in listed:
        low, high = entry["low"], entry["high"]
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        print(f"{entry['what']}  {entry['benchmark']}  {entry['metric']}  {entry['value']:.4f}{interval}")
    if not listed:
        print("None of the selected evaluations has stored samples")


@app.command()
def contamination(
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", help="Words in a row that must be equal.")] = 13,
    as_json: AsJson = False,
) -> None:
    """Report, for each benchmark of a command line's cells, how many of its items the training mixture has shown.

    Builds the data if they are not in the store; loads torch. Benchmarks whose data set is not here are named.
    """
    from pipelines.configuration import TOKEN_STAGES
    from pipelines.data.contamination import overlap
    from pipelines.data.corpus import prepare
    from pipelines.evaluation.evaluate import evaluation_texts
    from sweeps.compose.cells import compose_cells

    if n < 5:
        raise UserError(f"-n={n}: five words and more; shorter ones stand in any text by chance")
    cell = compose_cells(list(overrides or []))[0]
    corpus = prepare(cell.data, Store.create(cell.store).cache)
    texts, missing = evaluation_texts(cell.evaluation, corpus)
    sources = {s for stage in TOKEN_STAGES for s, weight in getattr(cell, stage).mixture.items() if weight > 0}
    report = overlap(texts, corpus.training_texts(sorted(sources)), n)
    if as_json:
        print(json.dumps({"n": n, "benchmarks": report, "missing": missing}, indent=1))
        return
    print(f"{'benchmark':20}{'items':>8}{'too short':>11}{'contaminated':>14}")
    for name, found in report.items():
        share = "" if found["contaminated"] is None else f"{found['contaminated']:.1%}"
        print(f"{name:20}{found['items']:>8}{found['short']:>11}{share:>14}")
    for name, why in missing.items():
        print(f"{name} is missing: {why}")


def find(store: Store, signature: str) -> StoredRun:
    """The one stored stage run whose signature begins so; raises `UserError` for none or several."""
    found = [run for run in store.runs() if run.signature.startswith(signature)]
    if len(found) != 1:
        count = f"{len(found)} stage runs begin so; type more of it" if found else "no stage run begins so"
        raise UserError(f"{signature}: {count}; shaping-sweeps status lists them")
    return found[0]
