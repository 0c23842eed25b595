"""`shaping-data`: token shards are made, looked at and verified."""

import os
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.data.preparation import prepare_shards
from pipelines.data.token_shards import TokenShards
from sweeps.commands.application import run

app = typer.Typer(
    help="Token shards: documents become memory-mapped tokens, once for all cells.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Folder = Annotated[str, typer.Argument(help="A folder of token shards.")]


def main() -> None:
    """Run the command line; exits with 0, with 1 for failures, 2 for a user's mistake, 130 after Ctrl-C."""
    run(app, "shaping-data")


@app.command()
def prepare(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="As typed to shaping-run: data=paper data.shards=FOLDER.")
    ] = None,
    processes: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    validation: Annotated[float, typer.Option(min=0, max=1, help="Share of documents held out, by hash.")] = 0.001,
    decontaminate: Annotated[
        list[str] | None, typer.Option(help="JSONL of an evaluation set; documents that share 13 words go.")
    ] = None,
) -> None:
    """Make token shards of data.sources in data.shards; the same command again goes on where it was killed."""
    from sweeps.compose.cells import compose_cell

    data = compose_cell(overrides or []).data
    began, seen = time.time(), {"documents": 0, "characters": 0}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("parts", total=None)

        def progress(done: int, total: int, record: dict[str, Any]) -> None:
            for key in seen:
                seen[key] += record[key]
            rate = seen["characters"] / 1e6 / (time.time() - began)
            bar.update(
                task, completed=done, total=total, description=f"{seen['documents']:,} documents, {rate:.1f} MB/s"
            )

        index = prepare_shards(
            data,
            processes=processes or len(os.sched_getaffinity(0)),
            validation=validation,
            evaluation_files=decontaminate or [],
            progress=progress,
        )
    print(index)
    show(str(index.parent))


@app.command()
def show(folder: Folder) -> None:
    """Print what a folder holds."""
    shards = TokenShards(folder)
    index = shards.index
    print(
        f"{index['documents']:,} documents, {index['characters']:,} characters, {index['contaminated']:,} dropped as "
        f"contaminated; vocabulary {index['vocabulary']:,}, {shards.type.name}"
    )
    print(f"{'source':20}{'split':12}{'shards':>8}{'documents':>14}{'tokens':>18}")
    for source, splits in index["sources"].items():
        for split, found in splits.items():
            documents, tokens = (sum(shard[key] for shard in found) for key in ("documents", "tokens"))
            print(f"{source:20}{split:12}{len(found):>8}{documents:>14,}{tokens:>18,}")


@app.command()
def verify(folder: Folder) -> None:
    """Read every shard and compare it with its hash."""
    print(f"{TokenShards(folder).verify()} shards are as they were written")


if __name__ == "__main__":
    main()
