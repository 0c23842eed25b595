"""Which of the paper's tables shows what, as literals."""

from dataclasses import astuple

from analysis.paper_tables import TABLES

SIZES = ("1B", "4B", "5B-A0.3B", "10B-A0.5B")
BETAS = ("precision", "ce", "diversity")
LAMBDAS = ("tail_penalty", "ce", "head_reward")


def test_every_table_shows_what_it_shows_in_the_paper() -> None:
    pretrained = {2 + i: ("pretrain", size, BETAS) for i, size in enumerate(SIZES)}
    pretrained |= {6 + i: ("pretrain", size, LAMBDAS) for i, size in enumerate(SIZES)}
    midtrained = {
        10: ("midtrain", "4B", BETAS),
        11: ("midtrain", "10B-A0.5B", BETAS),
        12: ("midtrain", "4B", LAMBDAS),
        13: ("midtrain", "10B-A0.5B", LAMBDAS),
    }
    after_rl = {
        14: ("grpo", "4B", ("ce",)),
        15: ("grpo", "10B-A0.5B", ("ce",)),
        16: ("grpo", "4B", ("precision",)),
        17: ("grpo", "4B", ("diversity",)),
        18: ("grpo", "10B-A0.5B", ("precision",)),
        19: ("grpo", "10B-A0.5B", ("diversity",)),
        20: ("grpo", "4B", ("tail_penalty",)),
        21: ("grpo", "4B", ("head_reward",)),
        22: ("grpo", "10B-A0.5B", ("tail_penalty",)),
        23: ("grpo", "10B-A0.5B", ("head_reward",)),
    }
    assert {number: astuple(table) for number, table in TABLES.items()} == pretrained | midtrained | after_rl
