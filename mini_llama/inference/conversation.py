"""A conversation with a model: its history, and a key/value cache that outlives a turn.

What the model has read of a prompt in earlier turns is not read again. The file knows neither the
terminal nor files, and of the network what generation.py knows.
"""

from collections.abc import Iterator

import torch

from mini_llama.inference.chat_template import TEMPLATES, Exchange, check_texts, fit_history
from mini_llama.inference.generation import DecodeStep, LanguageModel, make_cache, stream
from mini_llama.inference.sampling import Sampler
from mini_llama.tokenization.base import BaseTokenizer, StreamDecoder
from rope import fixed_positions


class Conversation:
    """A system prompt and finished exchanges. One turn is `prompt`, `answer`, and `keep`.

    `template` is one of chat_template.TEMPLATES; `decode` and `capacity` are generation.stream's.
    Raises ValueError if the context has no room for a prompt beside `max_new_tokens`.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: BaseTokenizer,
        template: str,
        sampler: Sampler,
        max_new_tokens: int,
        device: torch.device | str = "cpu",
        decode: DecodeStep | None = None,
        capacity: int | None = None,
    ) -> None:
        config = model.config
        self.room = config.max_seq_len - max_new_tokens
        if self.room < 1:
            raise ValueError(
                f"--max_new_tokens {max_new_tokens} is not allowed: the context is "
                f"{config.max_seq_len} tokens, so it must be at most {config.max_seq_len - 1}"
            )
        self.model, self.tokenizer, self.sampler = model, tokenizer, sampler
        self.template, self.max_new_tokens = template, max_new_tokens
        self.device, self.decode = device, decode
        self.system = ""
        self.exchanges: list[Exchange] = []
        self.cache = None
        if config.is_causal:
            one = torch.zeros(1, 1, device=device)
            self.cache = make_cache(model, one, 0, capacity or config.max_seq_len)
        fixed = fixed_positions(config.max_seq_len, config.rope_scaling)
        self.can_reuse = fixed == config.max_seq_len  # else keys depend on the prompt's length
        # Ids of the last prompt and answer; the cache holds their beginning.
        self.seen: list[int] = []

    def set_system(self, text: str) -> None:
        """Another system prompt for the whole conversation. Raises ValueError, and keeps the old
        one, where it cannot be one: see `prompt`.
        """
        fit_history(TEMPLATES[self.template], self.tokenizer, text, [], "", self.room)
        self.system = text

    def prompt(self, user: str) -> tuple[list[int], int]:
        """Token ids of the conversation with one more turn, and how many of the oldest exchanges
        were forgotten, so that prompt and answer fit the context.

        Raises ValueError, and forgets nothing, for a turn that is too long by itself, has one of
        the template's tags, or is not UTF-8.
        """
        template = TEMPLATES[self.template]
        ids, dropped = fit_history(
            template, self.tokenizer, self.system, self.exchanges, user, self.room
        )
        del self.exchanges[:dropped]
        return ids, dropped

    def answer(self, ids: list[int]) -> Iterator[str]:
        """Yield the answer to a prompt, a piece for each token, until EOS or BOS.

        It may be broken off at any point: the next turn reads again whatever is not whole.
        """
        self._rewind(ids)
        stops = {self.tokenizer.bos_id, self.tokenizer.eos_id}
        decoder = StreamDecoder(self.tokenizer, at_start=self.template != "plain")
        tokens = torch.tensor([ids], device=self.device)
        for token in stream(
            self.model,
            tokens,
            self.max_new_tokens,
            self.sampler,
            decode=self.decode,
            cache=self.cache,
        ):
            token_id = int(token)
            self.seen.append(token_id)
            if token_id in stops:
                break
            yield decoder.feed(token_id)
        yield decoder.finish()

    def keep(self, user: str, answer: str) -> None:
        """Add an exchange to the history. Raises ValueError for an answer without text, or with one
        of the template's tags, which the model would take for a turn.
        """
        if not answer.strip():
            raise ValueError("the answer is empty")
        check_texts(answer)
        self.exchanges.append(Exchange(user, answer))

    def _rewind(self, ids: list[int]) -> None:
        """Leave in the cache what it holds of the beginning of ids; the last one is always read."""
        if self.cache is not None:
            held = self.seen[: self.cache.position] if self.can_reuse else []
            pairs = zip(held, ids[:-1], strict=False)
            differing = (n for n, (old, new) in enumerate(pairs) if old != new)
            self.cache.rewind(next(differing, min(len(held), len(ids) - 1)))
        self.seen = list(ids)
