"""lm-eval's model interface on the rollout engine.

`RolloutLM` answers lm-eval's three kinds of requests with the same tokens as its `hf` backend, but faster: batches hold
requests of similar length, worked examples with which all contexts begin are run once, the options of an item share
their context, and several samples of one prompt share its prefill. Answers are stored in a `BenchmarkCache`, so a task
that was killed resumes, and several processes share the requests.

The extra `evaluation` installs lm-eval.
"""

import bisect
import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipelines.data.tokenizer import encode, fitting, fitting_pair
from pipelines.evaluation.benchmark_cache import RANGE_TOKENS, BenchmarkCache, Rows
from pipelines.random_streams import Stream, stream_seed
from pipelines.rollouts import Rollouts, Sampling, generate, likelihoods

BATCH_TOKENS = 16_384
RANGE_REQUESTS = 2048
"""Most log-likelihood requests of one stored range."""
MAX_NEW_TOKENS = 256
"""Longest answer in tokens of a task that does not set one; the same as lm-eval's."""


class RolloutLM(TemplateLM):
    """lm-eval's model interface on a `transformers` model in this process."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cache: BenchmarkCache | None = None,
        *,
        cut_answers: bool = True,
    ) -> None:
        """Without a `cache`, answers are stored in a temporary folder that is deleted with this object.

        `cut_answers` says whether a text that the length limit cut is returned, as by lm-eval's own models; if not, it
        is "".
        """
        super().__init__()
        self._model = model.eval()
        self.tokenizer: Any = tokenizer
        self._folder = tempfile.TemporaryDirectory()
        self._cut_answers = cut_answers
        self._cache = cache or BenchmarkCache(Path(self._folder.name), {})
        self.max_length = int(model.config.max_position_embeddings)
        self.cut_prompts = 0
        """Requests whose context was cut because the model has no positions for it."""

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text and begins every document; the context of a text that has none."""
        return int(self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """The key of lm-eval's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, by default after the token that begins every document, as the model was trained."""
        if add_special_tokens is False:
            return list(self.tokenizer.encode(string, add_special_tokens=False))
        return encode(self.tokenizer, string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """For each request, the log-probability of its continuation, and whether that is the greedy one.

        A context that is too long loses its beginning, except for the token that begins every document.
        """
        pairs = [fitting_pair(context, continuation, length=self.max_length) for _, context, continuation in requests]
        self.cut_prompts += sum(
            len(pair[0]) < len(context) for pair, (_, context, _) in zip(pairs, requests, strict=True)
        )
        # In the order of their contexts, requests of one range share the longest beginnings.
        order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])

        def compute(items: range) -> Rows:
            chosen = order[items.start : items.stop]
            contexts, continuations = [pairs[i][0] for i in chosen], [pairs[i][1] for i in chosen]
            values: dict[int, tuple[float, bool]] = {}
            for batch, scores in likelihoods(self._model, contexts, continuations, batch_tokens=BATCH_TOKENS):
                lengths = [len(continuations[i]) for i in batch]
                log_probs = [tokens.sum().item() for tokens in scores.log_probs.split(lengths)]
                greedy = [bool(tokens.all()) for tokens in scores.likeliest.split(lengths)]
                values |= dict(zip(batch, zip(log_probs, greedy, strict=True), strict=True))
            return [{"request": i, "value": values[index]} for index, i in enumerate(chosen)]

        ranges = self._cache.ranges(len(pairs), most=RANGE_REQUESTS)
        rows = self._cache.rows("log-likelihood", _key("log-likelihood", pairs), ranges=ranges, compute=compute)
        answers = {row["request"]: (row["value"][0], row["value"][1]) for row in rows}
        return [answers[i] for i in range(len(pairs))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole texts, in windows of the model's length that predict each token once."""
        # The windows of all texts are scored together; each adds to the total of its text.
        windows: list[tuple[Any, list[int], list[int]]] = []
        request_indices: list[int] = []
        for index, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),  # lm-eval adds the first
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                request_indices.append(index)
        totals = np.zeros(len(requests))
        for index, (log_prob, _) in zip(request_indices, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += log_prob
        return [float(total) for total in totals]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first stop string; equal requests get different samples of one prompt if they sample."""
        # Settings -> context -> indices of the requests with both.
        groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for i, request in enumerate(requests):
            context, kwargs = request.args
            groups[json.dumps(kwargs, sort_keys=True, default=str)][context].append(i)

        # Contexts that have the same settings and number of requests run together.
        answers = [""] * len(requests)
        for by_context in groups.values():
            first = next(iter(by_context.values()))[0]
            kwargs = requests[first].args[1]
            for n in sorted({len(indices) for indices in by_context.values()}):
                contexts = [context for context, indices in by_context.items() if len(indices) == n]
                for context, texts in zip(contexts, self._texts(contexts, kwargs, n), strict=True):
                    for i, text in zip(by_context[context], texts, strict=True):
                        answers[i] = text
        return answers

    def _texts(self, contexts: list[str], kwargs: dict[str, Any], n: int) -> list[list[str]]:
        """`n` texts for each context; they are equal if the settings are greedy."""
        settings = normalize_gen_kwargs(dict(kwargs), MAX_NEW_TOKENS)
        until = handle_stop_sequences(settings.get("until"), eos=None)
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        sampling = Sampling(temperature, float(settings.get("top_p", 1.0)), int(settings["max_gen_toks"]))
        # Greedy texts are generated once and repeated.
        samples = n if sampling.temperature else 1
        # With the contexts in it, tasks of equal settings do not share their random numbers.
        seed = stream_seed(Stream.GENERATION, json.dumps(kwargs, sort_keys=True, default=str), *contexts)
        prompts = [self.prompt(context, sampling.max_new_tokens) for context in contexts]
        order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))  # longest first

        def compute(items: range) -> Rows:
            chosen = order[items.start : items.stop]
            token_ids = [prompts[i] for i in chosen]
            rollouts = self.sample(token_ids, sampling, n=samples, seed=seed, until=until, first=items.start)
            texts, stopped = self.decode(rollouts, until), rollouts.stopped.tolist()
            parts = [slice(index * samples, (index + 1) * samples) for index in range(len(chosen))]
            return [
                {"request": i, "texts": texts[part], "stopped": stopped[part]}
                for i, part in zip(chosen, parts, strict=True)
            ]

        key = _key("generation", [prompts, kwargs, samples])
        ranges = self._cache.ranges(len(contexts), most=RANGE_TOKENS // (samples * sampling.max_new_tokens))
        rows = self._cache.rows("generation", key, ranges=ranges, compute=compute)
        answers = {
            row["request"]: [
                text if stopped or self._cut_answers else ""
                for text, stopped in zip(row["texts"], row["stopped"], strict=True)
            ]
            for row in rows
        }
        return [answers[i] * (n // samples) for i in range(len(contexts))]

    def prompt(self, context: str, limit: int) -> list[int]:
        """Token ids of a context; it is cut, and counted, if an answer of `limit` tokens would not fit after it."""
        whole = self.tok_encode(context)
        prompt = fitting(whole, length=self.max_length, limit=limit)
        self.cut_prompts += len(prompt) < len(whole)
        return prompt

    def sample(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        *,
        n: int,
        seed: Sequence[int],
        until: Sequence[str],
        first: int = 0,
    ) -> Rollouts:
        """`n` responses to each prompt; one that contains a stop string ends early. For `first` see `generate`."""

        def ended(responses: list[list[int]]) -> list[int | None]:
            texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
            return [
                self._length_to_stop(response, until) if any(stop in text for stop in until) else None
                for response, text in zip(responses, texts, strict=True)
            ]

        until = [stop for stop in until if stop]
        return generate(self._model, prompts, sampling, n=n, seed=seed, first=first, ended=ended if until else None)

    def _length_to_stop(self, response: list[int], until: Sequence[str]) -> int:
        """Tokens of a response up to the one that completes its first stop string, by bisection."""

        def stops(length: int) -> bool:
            text = self.tokenizer.decode(response[:length], skip_special_tokens=True)
            return any(stop in text for stop in until)

        return bisect.bisect_left(range(len(response)), True, lo=1, key=stops)

    def decode(self, rollouts: Rollouts, until: Sequence[str]) -> list[str]:
        """The texts of the responses, each up to its first stop string."""
        texts = self.tokenizer.batch_decode(rollouts.responses(), skip_special_tokens=True)
        return [cut_at(text, until) for text in texts]


def cut_at(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    for stop in until:
        if stop:
            text = text.split(stop, 1)[0]
    return text


def _key(request_type: str, content: Any) -> dict[str, str]:
    """The key of requests in the cache. The order of keys in `content` matters, unlike in `sha256_of`."""
    digest = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
    return {"lm-eval": request_type, "requests": digest}
