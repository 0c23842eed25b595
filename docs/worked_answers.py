"""How often mid-trained models work an answer out, and how often each kind of answer is right.

python docs/worked_answers.py [STORE]

Eight answers at temperature 1 to each held-out question of RL, from every model in the store that was trained on
the data of today's nano recipe.
"""

import sys

import torch
from transformers import AutoModelForCausalLM

from pipelines.data.corpus import Corpus, prepare
from pipelines.grpo.asked import Asked
from pipelines.rollouts import Sampling, generate
from pipelines.verifiers import Judge
from sweeps.compose.cells import compose_cell
from sweeps.plan.signatures import data_content
from sweeps.store.stage_runs import Store, StoredRun

SAMPLES = 8


def main() -> None:
    """Print a line for each model: shares of its answers in percent."""
    cell, store = compose_cell([]), Store.open(sys.argv[1] if sys.argv[1:] else "store")
    corpus = prepare(cell.data, store.cache)
    asked = Asked(cell.grpo, corpus, positions=cell.midtrain.sequence_length)
    print("model".ljust(28), "reward", "worked", "right if worked", "right if stated at once", sep=" | ")
    with Judge(1) as judge:
        for run in store.folders([]):
            if run.stage == "midtrain" and run.is_done and run.spec["config"]["data"] == data_content(cell.data):
                labels = run.spec["labels"]
                print(f"{labels['objective']}/seed{labels['seed']}".ljust(28), *shares(run, corpus, asked, judge))


def shares(run: StoredRun, corpus: Corpus, asked: Asked, judge: Judge) -> list[str]:
    """Reward, share of worked answers, and the rewards of worked answers and of others."""
    checkpoint = sorted((run.folder / "checkpoints").iterdir())[-1]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompts = corpus.prompts([question.prompt for question in asked.held_out])
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=40)
    tokens = generate(model, prompts, sampling, n=SAMPLES, seed=(0,)).responses()
    texts = corpus.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    items = [asked.held_out[i // SAMPLES].judged(text) for i, text in enumerate(texts)]
    rewards = torch.tensor([verdict.reward for verdict in judge.rewards(items)])
    worked = torch.tensor(["=" in text for text in texts])
    numbers = (rewards.mean(), worked.float().mean(), rewards[worked].mean(), rewards[~worked].mean())
    return [f"| {100 * number:.1f}" for number in numbers]


if __name__ == "__main__":
    main()
