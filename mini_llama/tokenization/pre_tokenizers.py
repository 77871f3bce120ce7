"""How byte-level tokenizers cut a text before they merge, by the name that GGUF files give.

A GGUF file of the kind gpt2 only names its rule, `tokenizer.ggml.pre`; the expressions are those of
the published tokenizers. Each is applied to what the one before it left in one piece.
"""

from typing import NamedTuple

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Llama 3's, with at most three digits together; Qwen 2's with one.
CL100K = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = CL100K % "1,3", CL100K % "1"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+%s|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = CASED % ("", "", "")
GPT4O = CASED % (f"{CONTRACTION}?", f"{CONTRACTION}?", "{1,3}")
CJK = "[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED_CODER = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


class Rule(NamedTuple):
    """`keeps_words`: a piece that is a token is not merged from its parts; `adds_bos`: BOS comes
    before a text where the file does not say.
    """

    expressions: tuple[str, ...]
    keeps_words: bool = False
    adds_bos: bool = False


_FAMILIES = (
    ("default", Rule((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
    ("falcon", Rule((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"))),
    ("gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4", Rule((GPT2,))),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b", Rule((r"\p{N}", GPT2))),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        Rule((LLAMA3,), keeps_words=True, adds_bos=True),
    ),
    ("dbrx smaug-bpe glm4 chatglm-bpe", Rule((LLAMA3,))),
    ("qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez kormo", Rule((QWEN2,))),
    ("tekken", Rule((TEKKEN,), keeps_words=True, adds_bos=True)),
    ("gpt-4o", Rule((GPT4O,))),
    (
        "deepseek-coder",
        Rule(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    ),
    ("deepseek-v3 hunyuan-dense", Rule((r"\p{N}{1,3}", CJK, DEEPSEEK3))),
    ("seed-coder", Rule((SEED_CODER,))),
    ("bloom poro-chat gpt3-finnish", Rule((BLOOM,))),
    ("viking", Rule((BLOOM, r"\p{N}"))),
)
RULES = {name: rule for names, rule in _FAMILIES for name in names.split()}
