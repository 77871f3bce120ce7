"""Mistakes in generate_addition_data."""

import random
from collections.abc import Callable

import addition_data_generation
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants


def additions(
    draw: Callable[[], int] = lambda: random.randint(1000, 9999),
    form: str = "{a}+{b}={c}",
    key: Callable[[int, int], object] = lambda a, b: (min(a, b), max(a, b)),
    more: int = 0,
) -> Variant:
    """Correct by default: a pair whose `key` was drawn before is drawn again."""

    def generate(n: int) -> list[str]:
        taken: set[object] = set()
        texts: list[str] = []
        while len(texts) < n + more:
            a, b = draw(), draw()
            if key(a, b) not in taken:
                taken.add(key(a, b))
                texts.append(form.format(a=a, b=b, c=a + b))
        return texts

    return (Replacement(addition_data_generation, "generate_addition_data", generate),)


VARIANTS: Variants = {
    "a pair comes twice": (additions(key=lambda a, b: object()),),
    "a pair comes in both orders": (additions(key=lambda a, b: (a, b)),),
    "numbers below 1000": (
        additions(draw=lambda: random.randint(0, 9999)),
        additions(draw=lambda: random.randint(1, 9999)),
    ),
    "numbers above 9999": (additions(draw=lambda: random.randint(1000, 12000)),),
    "spaces in the additions": (additions(form="{a} + {b} = {c}"),),
    "the sum is left out": (additions(form="{a}+{b}="),),
    "one addition more": (additions(more=1),),
    "one addition fewer": (additions(more=-1),),
}
