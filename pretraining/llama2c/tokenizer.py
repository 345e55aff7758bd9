"""llama2.c's tokenizer.bin as a Hugging Face tokenizer that encodes and decodes alike.

llama2.c prepends a space, looks every character up (its UTF-8 bytes where it is unknown), then
keeps joining the neighbors whose union is the piece of highest score. That is byte-pair encoding
with one merge rule per way to split a piece, ordered by the score of the piece.

One difference is left, as with every Hugging Face tokenizer: a text that spells out `<s>`, `</s>`
or `<unk>` is read as these tokens.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from rosa.errors import RosaError

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
BOS_ID, EOS_ID = 1, 2
_SPECIAL = [UNK, BOS, EOS]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_FIRST_PIECE = len(_SPECIAL) + len(_BYTES)


class Piece(NamedTuple):
    """One entry: its text, and a score that is higher the sooner it is joined."""

    text: str
    score: float


def read_tokenizer(path: Path, vocab_size: int) -> list[Piece]:
    """The `vocab_size` entries of a tokenizer.bin, the first 259 being specials and bytes.

    Raises `RosaError` naming the file and the entry or byte, for a file that is cut short or too
    long and for entries that a SentencePiece BPE model with byte fallback can't have.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RosaError(f"the tokenizer {path} can't be read: {error.strerror}") from error
    if len(data) < 4:
        raise RosaError(f"{path} has {len(data)} bytes, fewer than a tokenizer.bin's first field")
    (longest,) = struct.unpack_from("<i", data)
    pieces, end = [], 4
    for index in range(vocab_size):
        piece, end = _read_piece(path, data, end, index, longest)
        pieces.append(piece)
    if end != len(data):
        raise RosaError(
            f"{path} has {len(data)} bytes and its first {vocab_size} entries, as many as the "
            f"checkpoint's vocabulary, take {end}; it is the tokenizer of another model"
        )
    _check(path, pieces)
    return pieces


def hugging_face_tokenizer(pieces: Sequence[Piece], max_length: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer that adds `<s>` in front and nothing behind, as llama2.c's run does."""
    names = [*_SPECIAL, *(piece.text for piece in pieces[len(_SPECIAL) :])]
    bpe = models.BPE(
        vocab={name: index for index, name in enumerate(names)},
        merges=_merges(pieces[_FIRST_PIECE:]),
        unk_token=UNK,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=UNK,  # never produced: unknown characters become bytes
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def _read_piece(path: Path, data: bytes, start: int, index: int, longest: int) -> tuple[Piece, int]:
    text_start = start + 8
    if text_start > len(data):
        raise RosaError(
            f"{path} ends at byte {len(data)}, within entry {index}; it is cut short or has fewer "
            "entries than the checkpoint's vocabulary"
        )
    score, length = struct.unpack_from("<fi", data, start)
    if not 0 < length <= longest:
        raise RosaError(
            f"{path} is not a llama2.c tokenizer: entry {index} (at byte {start}) has length "
            f"{length}, and the file says that the longest has {longest}"
        )
    end = text_start + length
    if end > len(data):
        raise RosaError(f"{path} has {len(data)} bytes and entry {index} ends at byte {end}")
    try:
        return Piece(data[text_start:end].decode(), score), end
    except UnicodeDecodeError as error:
        raise RosaError(f"{path} is damaged: entry {index} is not valid UTF-8") from error


def _check(path: Path, pieces: Sequence[Piece]) -> None:
    """Raises `RosaError` unless BPE with byte fallback can reproduce these entries exactly."""
    for index, name in enumerate(_BYTES, len(_SPECIAL)):
        if index >= len(pieces) or pieces[index].text != name:
            raise RosaError(
                f"{path} has no byte fallback: entry {index} should be {name}; only tokenizers "
                "with the 256 bytes as entries 3 to 258 can be converted"
            )
    seen_texts: dict[str, int] = {name: index for index, name in enumerate([*_SPECIAL, *_BYTES])}
    seen_scores: dict[float, int] = {}
    for index, (text, score) in enumerate(pieces[_FIRST_PIECE:], _FIRST_PIECE):
        if text in seen_texts:
            raise RosaError(f"{path} has entry {seen_texts[text]} again as entry {index}: {text!r}")
        if score in seen_scores:
            raise RosaError(
                f"{path} gives the entries {seen_scores[score]} and {index} the same score "
                f"{score}; the order of merges needs one score each"
            )
        seen_texts[text], seen_scores[score] = index, index
    if " " not in seen_texts:
        raise RosaError(f"{path} has no entry for the space that llama2.c puts before every text")


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best score first.

    Of the ways to join into the same piece the one with the longer left part comes first: where
    two overlap in a text, llama2.c takes the left one.
    """
    known = {piece.text for piece in pieces}
    rules = []
    for text, _ in sorted(pieces, key=lambda piece: -piece.score):
        for cut in range(len(text) - 1, 0, -1):
            if text[:cut] in known and text[cut:] in known:
                rules.append((text[:cut], text[cut:]))
    return rules
