"""Tokens as a page shows them: every byte, space and control character is visible."""

from dataclasses import dataclass

from mini_llama.command_line import visible
from mini_llama.tokenization.base import BaseTokenizer

LONGEST = 24  # characters
SIGNS = str.maketrans({" ": "▁", "\n": "↵", "\t": "⇥"})
KINDS = ("text", "control", "padding")


@dataclass(frozen=True)
class Piece:
    """One token: its id, its readable text and one of KINDS."""

    id: int
    text: str
    kind: str


def read_piece(tokenizer: BaseTokenizer, token_id: int) -> Piece:
    """One token by itself. A space is ▁; bytes that are no character are written <0xE2>."""
    try:
        content = tokenizer.token_bytes(token_id, at_start=False)
    except (IndexError, KeyError, ValueError):  # a model has more rows than its vocabulary
        return Piece(token_id, f"no. {token_id}", "control")
    if content is None:
        return Piece(token_id, _control_name(tokenizer, token_id), "control")
    try:
        text = visible(content.decode().translate(SIGNS))
    except UnicodeDecodeError:
        text = "".join(f"<0x{byte:02X}>" for byte in content)
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    return Piece(token_id, text or "∅", "text")


def read_pieces(tokenizer: BaseTokenizer, ids: list[int], length: int | None = None) -> list[Piece]:
    """The tokens of a row; those from `length` on are padding."""
    pieces = [read_piece(tokenizer, token_id) for token_id in ids]
    real = len(ids) if length is None else length
    padding = (Piece(piece.id, "PAD", "padding") for piece in pieces[real:])
    return [*pieces[:real], *padding]


def _control_name(tokenizer: BaseTokenizer, token_id: int) -> str:
    if token_id == tokenizer.bos_id:
        return "BOS"
    if token_id in tokenizer.eos_ids:
        return "EOS"
    names = {token.id: name for name, token in tokenizer.named_tokens.items()}
    return visible(names.get(token_id, f"control {token_id}"))[:LONGEST]
