"""`shaping-data`: prepares, shows and verifies token shards."""

from typing import Annotated

import typer

from pipelines.data.preparation import prepare_shards
from pipelines.data.token_shards import TokenShards
from sweeps.commands.preparation_bar import PreparationBar
from sweeps.commands.shared_arguments import run
from sweeps.execute.machine import available_cores

app = typer.Typer(
    help="Token shards: documents as memory-mapped tokens, prepared once for all cells.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Folder = Annotated[str, typer.Argument(help="A folder of token shards.")]


def main() -> None:
    """Run the command line; the exit codes are those of `sweeps.commands.exit_codes`."""
    run(app, "shaping-data")


@app.command()
def prepare(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="As for shaping-run: data=paper data.shards=FOLDER.")
    ] = None,
    *,
    processes: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    validation: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of documents that are held out, by hash (default: 0.001, 0.05 below 16 MB)."
        ),
    ] = None,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(help="JSONL of an evaluation set; documents that share 13 words in a row with it are dropped."),
    ] = None,
) -> None:
    """Prepare token shards of data.sources in data.shards. If it is killed, the same command resumes."""
    from sweeps.compose.cells import compose_data

    data = compose_data(overrides or [])
    bar = PreparationBar()
    try:
        index = prepare_shards(
            data,
            processes=processes or available_cores(),
            validation=validation,
            evaluation_files=decontaminate or [],
            progress=bar.update,
        )
    finally:
        bar.stop()
    print(index)
    show(str(index.parent))


@app.command()
def show(folder: Folder) -> None:
    """Print the content of a folder of token shards."""
    shards = TokenShards(folder)
    index = shards.index
    without_text = index.get("without_text")  # not in shards of earlier versions
    passed_over = f", {without_text:,} records without text" if without_text else ""
    count = index["contaminated"]
    dropped = "not searched for evaluation sets" if count is None else f"{count:,} dropped as contaminated"
    print(
        f"{index['documents']:,} documents, {index['characters']:,} characters{passed_over}, {dropped}; "
        f"vocabulary {index['vocabulary']:,}, {shards.type.name}"
    )
    print(f"{'source':20}{'split':12}{'shards':>8}{'documents':>14}{'tokens':>18}")
    for source, splits in index["sources"].items():
        for split, of_split in splits.items():
            documents, tokens = (sum(shard[key] for shard in of_split) for key in ("documents", "tokens"))
            print(f"{source:20}{split:12}{len(of_split):>8}{documents:>14,}{tokens:>18,}")


@app.command()
def verify(folder: Folder) -> None:
    """Compare every shard with its hash."""
    print(f"{TokenShards(folder).verify()} shards have the hashes that they were written with")


if __name__ == "__main__":
    main()
