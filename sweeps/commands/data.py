"""`shaping-data`: prepares, shows and verifies token shards; makes files of questions for RL."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.cores import available_cores
from pipelines.data.preparation import prepare_shards
from pipelines.data.token_shards import TokenShards
from pipelines.errors import MissingData, require
from sweeps.commands.preparation_bar import PreparationBar
from sweeps.commands.shared_arguments import run

app = typer.Typer(
    help="Token shards (documents as memory-mapped tokens) and files of questions, prepared once for all cells.",
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
    again: Annotated[
        bool, typer.Option("--again", help="Remove the shards and the tokenizer that are there, and begin again.")
    ] = False,
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
            again=again,
        )
    finally:
        bar.stop()
    print(index)
    show(str(index.parent))


@app.command()
def questions(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="As for shaping-run: grpo=small evaluation=small.")
    ] = None,
    *,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(help="JSONL or Parquet of one more evaluation set, whose questions are left out."),
    ] = None,
) -> None:
    """Make the files of grpo.questions, without questions of the evaluation's mathematics and of --decontaminate."""
    from pipelines.data.question_preparation import prepare_questions, texts_of_file
    from sweeps.compose.cells import compose_questions

    grpo, evaluation = compose_questions(overrides or [])
    texts: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for name, benchmark in evaluation.benchmarks.items():
        if benchmark.group != "math" or benchmark.dataset is None:
            continue
        if benchmark.local:
            texts[name] = texts_of_file(benchmark.dataset)
            continue
        try:
            texts[name] = _lm_eval_texts(name, benchmark)
        except MissingData as error:
            missing[name] = str(error)
    for path in decontaminate or []:
        require(Path(path).is_file(), "--decontaminate", path, fix="no such file; give the path of an existing one")
        texts[path] = texts_of_file(path)
    for name, counts in prepare_questions(grpo, texts).items():
        measured = ", ".join(f"{count:,} in {where}" for where, count in counts.measured.items() if count)
        print(
            f"{grpo.question_files[name]}: {counts.kept:,} of {counts.records:,} records; left out: {counts.without:,} "
            f"without question or answer, {counts.repeated:,} repeated, {counts.difficulty:,} by difficulty, "
            f"measured: {measured or 'none'}"
        )
    print(f"searched for: {', '.join(texts) or 'no evaluation set'}")
    for name, reason in missing.items():
        print(f"not searched for: {name} ({reason})")


def _lm_eval_texts(name: str, benchmark: BenchmarkConfig) -> list[str]:
    """The items of a task of lm-eval. Raises `MissingData` where they or lm-eval are not there."""
    try:
        from pipelines.evaluation.lm_eval_tasks import item_texts
    except ImportError as error:
        raise MissingData("lm-eval is not installed: pip install 'shaping[evaluation]'") from error
    return item_texts(name, benchmark)


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
