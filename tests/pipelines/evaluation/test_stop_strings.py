"""Answers that a stop string or the length limit ends, against a search of each sample's own tokens."""

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from lm_eval.api.instance import Instance

from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.evaluation.lm_eval_model import RolloutLM
from pipelines.evaluation.sampled_answers import answered
from pipelines.models.causal_lm import build_model
from pipelines.rollouts import Rollouts, Sampling, generate

LIMIT = 70


@pytest.fixture(scope="module")
def lm(corpus: Corpus) -> RolloutLM:
    model = build_model(ModelConfig("t", 2, 32, 64, 4, 2, 8), corpus.tokenizer, 1e4, seed=0).eval()
    return RolloutLM(model, corpus.tokenizer)


def sampled(lm: RolloutLM, until: list[str], *, prompts: int, n: int = 8) -> Rollouts:
    starts = [[5, 6, 7 + i] for i in range(prompts)]
    return lm._sampler.generate(starts, Sampling(1.0, 1.0, LIMIT), n=n, seed=(3,), stop=until)


def test_an_answer_ends_with_the_token_that_completes_its_stop_string(lm: RolloutLM) -> None:
    """Each sample has its own random numbers, so a run without stop strings has the same tokens for longer."""
    until = ["e", "or"]
    whole = generate(lm._model, [[5, 6, 7], [5, 6, 8]], Sampling(1.0, 1.0, LIMIT), n=8, seed=(3,))
    cut = sampled(lm, until, prompts=2)
    ends = []
    for row, response in enumerate(whole.responses()):
        texts = [lm.tokenizer.decode(response[:k], skip_special_tokens=True) for k in range(len(response) + 1)]
        lengths = [k for k, text in enumerate(texts) if any(stop in text for stop in until)]
        length = lengths[0] if lengths else len(response)
        ends.append(bool(lengths))
        assert cut.lengths[row] == length
        assert cut.stopped[row] == (bool(lengths) or whole.stopped[row])
        assert cut.tokens[row, :length].tolist() == response[:length]
        torch.testing.assert_close(cut.log_probs[row, :length], whole.log_probs[row, :length], atol=1e-4, rtol=0)
        assert not cut.log_probs[row, length:].any()
    assert sum(ends) > 4
    assert len({length % 16 for length in cut.lengths.tolist()}) > 2


def test_an_answer_that_a_stop_string_ended_does_not_depend_on_the_batch(lm: RolloutLM) -> None:
    together, first = sampled(lm, ["e"], prompts=4), sampled(lm, ["e"], prompts=1)
    assert together.lengths[:8].tolist() == first.lengths.tolist()
    assert together.stopped[:8].tolist() == first.stopped.tolist()
    assert together.responses()[:8] == first.responses()
    torch.testing.assert_close(together.log_probs[:8], first.log_probs, atol=1e-4, rtol=0)


def test_a_stop_string_in_the_last_token_before_the_limit_ends_the_answer(lm: RolloutLM) -> None:
    response = sampled(lm, ["e"], prompts=1)
    row = int(response.stopped.nonzero()[0])
    length = int(response.lengths[row])
    short = lm._sampler.generate([[5, 6, 7]], Sampling(1.0, 1.0, length), n=8, seed=(3,), stop=["e"])
    assert (short.lengths[row], short.stopped[row]) == (length, True)
    shorter = lm._sampler.generate([[5, 6, 7]], Sampling(1.0, 1.0, length - 1), n=8, seed=(3,), stop=["e"])
    assert (shorter.lengths[row], shorter.stopped[row]) == (length - 1, False)


def test_an_answer_that_the_limit_cut_has_no_answer() -> None:
    assert answered(("math", "5", "5"), False) == ("math", None, "5")
    assert answered(("math", "5", "5"), True) == ("math", "5", "5")


def test_lm_eval_scores_no_text_that_the_limit_cut(lm: RolloutLM, corpus: Corpus) -> None:
    """As lm-eval's own models, `RolloutLM` returns the text that there is; benchmarks ask it not to."""
    settings = {"max_gen_toks": 6, "until": ["e"], "do_sample": True, "temperature": 1.0}
    requests = [Instance("generate_until", {}, (f"a graph {i}", settings), 0) for i in range(12)]
    texts = lm.generate_until(requests)
    strict = RolloutLM(lm._model, corpus.tokenizer, cut_answers=False).generate_until(requests)
    kept = [text == other for text, other in zip(texts, strict, strict=True)]
    assert 0 < sum(kept) < 12
    assert {other for keep, other in zip(kept, strict, strict=True) if not keep} == {""}
