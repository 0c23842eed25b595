"""`shaping-sweeps sizes | calibrate`: the numbers behind the cost of a plan."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.errors import UserError, nearest
from sweeps.commands.shared_arguments import AsJson, Filters, StorePath, app
from sweeps.monitor.status import rows
from sweeps.store.stage_runs import Store

if TYPE_CHECKING:
    from sweeps.plan.calibration import Group

PAPER_VOCABULARY = 151_936


@app.command()
def sizes(
    names: Annotated[list[str] | None, typer.Argument(help="Models of conf/model; by default all of them.")] = None,
    vocabulary: Annotated[int, typer.Option(min=0, help="Size of the vocabulary; 0: 151,936, the paper's.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show the parameters of each model: in all, without embeddings, and how many of those one token uses."""
    from pipelines.models.sizes import active_body_parameters, body_parameters, parameters
    from sweeps.compose.cells import compose_cell
    from sweeps.compose.config_files import options_of

    models = options_of("model")
    for name in names or []:
        if name not in models:
            raise UserError(f"{name}: unknown model; {nearest(name, models)}")
    entries = vocabulary or PAPER_VOCABULARY
    # Count without building the models.
    table: list[dict[str, Any]] = []
    for name in names or models:
        model = asdict(compose_cell([f"model={name}"]).model)
        table.append(
            {
                "model": name,
                "parameters": parameters(model, entries),
                "without_embeddings": body_parameters(model),
                "active_without_embeddings": active_body_parameters(model),
            }
        )
    table.sort(key=lambda row: row["parameters"])
    if as_json:
        print(json.dumps({"vocabulary": entries, "models": table}, indent=1))
        return
    print(f"{'model':12}{'parameters':>16}{'no embeddings':>16}{'of them active':>16}   (vocabulary {entries:,})")
    for row in table:
        print(
            f"{row['model']:12}{row['parameters']:>16,}{row['without_embeddings']:>16,}"
            f"{row['active_without_embeddings']:>16,}"
        )


@app.command()
def calibrate(
    filters: Filters = None,
    *,
    store: StorePath = "store",
    device: Annotated[str, typer.Option(help="Device of the stage runs: h100, h200, a100 or core.")] = "core",
    as_json: AsJson = False,
) -> None:
    """Compare the cost model with the times of finished stage runs, and print the options of `plan` that fit them."""
    from sweeps.plan.calibration import fit, groups, measured, timed
    from sweeps.plan.cost import DEVICES

    if device not in DEVICES:
        raise UserError(f"--device={device}: {nearest(device, DEVICES)}")
    opened = Store.open(store)
    # Lengths of prompts and responses come first, since the work of sampling depends on them.
    done = [row.signature for row in rows(opened, filters or ()) if row.status == "done"]
    assumptions = measured(opened, done)
    runs = timed(opened, done, assumptions)
    rate, table = fit(runs, device), list(groups(runs, device))
    if as_json:
        result = asdict(rate) | {"assumed": asdict(assumptions), "groups": [asdict(group) for group in table]}
        print(json.dumps(result, indent=1))
        return
    _print_groups(table)
    print(
        f"shaping-sweeps plan ... --device {device} --mfu {rate.mfu:.3g} --sampling-mfu {rate.sampling_mfu:.3g} "
        f"--prompt-tokens {assumptions.prompt_tokens:.3g} --response-share {assumptions.response_share:.3g} "
        f"--mixed-share {assumptions.mixed_share:.3g}"
    )


def _print_groups(table: "list[Group]") -> None:
    print(
        f"{'model':12}{'stage':10}{'runs':>6}{'seconds':>11}{'of peak':>9}{'error':>8}{'worst':>8}{'other models':>14}"
    )
    for group in table:
        shares = ((group.share, 9), (group.error, 8), (group.worst, 8), (group.error_from_other_models, 14))
        cells = "".join(f"{'' if share is None else f'{share:.1%}':>{width}}" for share, width in shares)
        print(f"{group.model:12}{group.stage:10}{group.runs:>6}{group.device_seconds:>11.1f}{cells}")
    print(
        "seconds: median on one device; error: of times predicted by the model's other stage runs (median, worst), "
        "and by other models'"
    )
