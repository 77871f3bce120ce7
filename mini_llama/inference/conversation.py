"""A conversation with a model: its history, and a key/value cache that outlives a turn.

Each turn runs only the part of its prompt that the cache does not hold from earlier turns.
"""

from collections.abc import Iterator

import torch

from base_llama import LlamaPreTrainedModel
from mini_llama.bounds import UsageError
from mini_llama.inference.chat_template import TEMPLATES, Exchange, check_texts, fit_history
from mini_llama.inference.decoders import Decoder, choose_decoder
from mini_llama.inference.generation import Sample, stream
from mini_llama.inference.own_template import OwnTemplate
from mini_llama.tokenization.base import BaseTokenizer, StreamDecoder
from rope import fixed_positions


class Conversation:
    """A system prompt and finished exchanges. One turn is `prompt`, `answer`, and `keep`.

    `template` is one of chat_template.TEMPLATES, or the model's own; `sample` and `decoder` are
    generation.stream's. Raises ValueError if the context has no room for a prompt and
    `max_new_tokens`.
    """

    def __init__(
        self,
        llama: LlamaPreTrainedModel,
        tokenizer: BaseTokenizer,
        template: str | OwnTemplate,
        sample: Sample,
        max_new_tokens: int,
        decoder: Decoder | None = None,
    ) -> None:
        config = llama.config
        self.room = config.max_seq_len - max_new_tokens
        if self.room < 1:
            raise UsageError(
                f"--max_new_tokens {max_new_tokens} is not allowed: the context is "
                f"{config.max_seq_len} tokens, so it must be at most {config.max_seq_len - 1}"
            )
        self.llama, self.tokenizer, self.sample = llama, tokenizer, sample
        self.template, self.max_new_tokens = template, max_new_tokens
        self._as_ids = TEMPLATES[template] if isinstance(template, str) else template
        self.stops = {tokenizer.bos_id, tokenizer.eos_id}
        self.system = ""
        self.exchanges: list[Exchange] = []
        self.decoder = decoder or choose_decoder(llama)
        can_cache = config.is_causal
        self.cache = self.decoder.make_cache(1, config.max_seq_len) if can_cache else None
        fixed = fixed_positions(config.max_seq_len, config.rope_scaling)
        self.can_reuse = fixed == config.max_seq_len  # else keys depend on the prompt's length
        # Ids of the last prompt and answer; the cache holds their beginning.
        self.seen: list[int] = []

    def set_system(self, text: str) -> None:
        """Change the system prompt of the whole conversation. Raises ValueError as `prompt` does,
        and then keeps the old one.
        """
        if text:
            # Another's template may not take an empty turn.
            shortest = "" if isinstance(self.template, str) else "."
            fit_history(self._as_ids, self.tokenizer, text, [], shortest, self.room)
        self.system = text

    def prompt(self, user: str) -> tuple[list[int], int]:
        """Token ids of the conversation with one more turn, and how many of the oldest exchanges
        were forgotten to make prompt and answer fit the context.

        Raises ValueError, and forgets nothing, for a turn that is too long by itself, has one of
        the template's tags, or is not UTF-8, and as OwnTemplate does.
        """
        ids, dropped = fit_history(
            self._as_ids, self.tokenizer, self.system, self.exchanges, user, self.room
        )
        del self.exchanges[:dropped]
        return ids, dropped

    def answer(self, ids: list[int]) -> Iterator[str]:
        """Yield the answer to a prompt, a piece for each token, until one of `stops`.

        It may be stopped at any point: the next turn recomputes what is incomplete.
        """
        self._rewind(ids)
        text = StreamDecoder(self.tokenizer, at_start=self.template != "plain")
        tokens = torch.tensor([ids], device=self.llama.device)
        for token in stream(
            self.llama,
            tokens,
            self.max_new_tokens,
            self.sample,
            decoder=self.decoder,
            cache=self.cache,
        ):
            token_id = int(token)
            self.seen.append(token_id)
            if token_id in self.stops:
                break
            yield text.feed(token_id)
        yield text.finish()

    def keep(self, user: str, answer: str) -> None:
        """Add an exchange to the history. Raises ValueError for an answer without text, or with one
        of the template's tags, which the model would take for a turn.
        """
        if not answer.strip():
            raise ValueError("the answer is empty")
        if isinstance(self.template, OwnTemplate):
            self.template.check_texts(self.tokenizer, answer)
        else:
            check_texts(answer)
        self.exchanges.append(Exchange(user, answer))

    def _rewind(self, ids: list[int]) -> None:
        """Cut the cache to the longest prefix of ids that it holds, always without the last one."""
        if self.cache is not None:
            held = self.seen[: self.cache.position] if self.can_reuse else []
            pairs = zip(held, ids[:-1], strict=False)
            differing = (n for n, (old, new) in enumerate(pairs) if old != new)
            self.cache.rewind(next(differing, min(len(held), len(ids) - 1)))
        self.seen = list(ids)
