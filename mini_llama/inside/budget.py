"""How much of a text and of a model fits into one page: what does not is cut, and said.

Shapes: T positions, H query heads, K key/value heads, D head_dim, N layers, V vocabulary.
"""

from dataclasses import dataclass

from config import LlamaConfig

MAX_BYTES = 4_400_000  # of the numbers in a page, in base64; a page has at most 5 MB
LOGIT_BYTES = 1_600_000  # of these, the logits of a generation's steps
MAX_TOKENS = 64
COMPONENTS = 64  # of the width
UNITS = 16  # of the feed-forward, of each token
LENS_BYTES = 5 * 8
FULL, HALF = 4, 2  # bytes a number
# What is tried in turn: bytes a number, tokens, layers, heads; None is all.
ATTEMPTS: tuple[tuple[int, int, int | None, int | None], ...] = (
    (FULL, MAX_TOKENS, None, None),
    (HALF, MAX_TOKENS, None, None),
    (HALF, 48, None, None),
    (HALF, 32, None, None),
    (HALF, 24, None, None),
    (HALF, 16, None, None),
    (HALF, 24, 16, 16),
    (HALF, 16, 16, 16),
    (HALF, 24, 8, 8),
    (HALF, 16, 8, 8),
    (HALF, 16, 4, 4),
    (HALF, 8, 2, 1),
)


@dataclass(frozen=True)
class Budget:
    """What a page shows: the first `tokens` of a text, some layers, the first heads; `bytes` of a
    number that only a picture is made of. `notes` say what was cut.
    """

    tokens: int
    layers: tuple[int, ...]
    heads: int
    bytes: int
    logits: int
    notes: tuple[str, ...]


def plan(
    config: LlamaConfig, length: int, steps: int, sides: int = 1, most: int = MAX_TOKENS
) -> Budget:
    """The most of a text of `length` tokens, and of a generation, that a page has room for; it has
    `sides` models, and shows at most `most` tokens.
    """
    for size, tokens, layers, heads in ATTEMPTS:
        tokens = min(tokens, most, length, max(1, config.max_seq_len - steps))
        shown = spread(config.n_layers, layers or config.n_layers)
        group = config.n_heads // config.n_kv_heads
        count = max(group, min(heads or config.n_heads, config.n_heads) // group * group)
        bounds = (tokens, shown, count, size)
        logits = min(steps * config.vocab_size * FULL, LOGIT_BYTES * 3 // 4 // sides)
        if (estimate(config, *bounds, steps) + logits) * 4 // 3 <= MAX_BYTES // sides:
            break
    logits = min(config.vocab_size, logits // (FULL * max(steps, 1)))
    if logits < config.vocab_size:
        logits //= 2  # each with its id
    return Budget(*bounds, logits, tuple(_notes(config, length, bounds, logits)))


def spread(count: int, most: int) -> tuple[int, ...]:
    """At most `most` of `count` layers, the first and the last among them."""
    if count <= most:
        return tuple(range(count))
    gaps = max(most - 1, 1)
    return tuple(round(i * (count - 1) / gaps) for i in range(most))


def estimate(
    config: LlamaConfig, tokens: int, layers: tuple[int, ...], heads: int, size: int, steps: int
) -> int:
    """Bytes of the numbers, but for the logits."""
    keys = max(1, heads * config.n_kv_heads // config.n_heads)
    scores = heads * tokens * tokens * FULL
    pairs = tokens * (heads + keys) * config.head_dim * size
    strips = tokens * 4 * min(config.dim, COMPONENTS) * size
    units = tokens * UNITS * 3 * FULL
    lens = (config.n_layers + 1) * (tokens + steps) * LENS_BYTES
    rows = len(layers) * heads * steps * (tokens + steps) * FULL
    return len(layers) * (scores + pairs + strips + units) + lens + rows


def _notes(
    config: LlamaConfig, length: int, bounds: tuple[int, tuple[int, ...], int, int], logits: int
) -> list[str]:
    tokens, layers, heads, size = bounds
    notes = []
    if tokens < length:
        notes.append(
            f"The text has {length} tokens: only the first {tokens} are run and shown, so that the "
            "page stays small."
        )
    if len(layers) < config.n_layers:
        notes.append(
            f"The model has {config.n_layers} layers: {len(layers)} of them are shown "
            f"({', '.join(map(str, layers))}); the residual stream and the logit lens have all."
        )
    if heads < config.n_heads:
        notes.append(f"Each layer has {config.n_heads} heads: the first {heads} are shown.")
    if size == HALF:
        notes.append(
            "Queries, keys and norms are rounded to 16 bits, so that the page stays small; scores, "
            "probabilities and logits are not."
        )
    if logits < config.vocab_size:
        notes.append(
            f"Of the {config.vocab_size} tokens of the vocabulary, the {logits} most probable of "
            "each step are kept: what the sliders show is of these."
        )
    return notes
