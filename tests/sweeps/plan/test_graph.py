"""The graph of stage runs."""

from sweeps.compose.cells import compose_cell
from sweeps.plan.graph import Plan
from sweeps.plan.planner import plan


def test_descendants_need_a_stage_run_directly_or_through_others() -> None:
    graph = plan([compose_cell([])])
    first = next(iter(graph.runs))
    assert {run.signature for run in graph.descendants(first)} == set(graph.runs) - {first}
    assert Plan().runs == {}


def test_a_part_of_the_graph_has_all_that_it_needs() -> None:
    graph = plan([compose_cell([]), compose_cell(["seed=2"])])
    grpo = next(run for run in graph.runs.values() if run.stage == "grpo")
    part = graph.part([grpo.signature])
    assert [run.stage for run in part.runs.values()] == ["pretrain", "midtrain", "grpo"]
    assert part.cells == {"nano/ce/seed1": list(part.runs)}
