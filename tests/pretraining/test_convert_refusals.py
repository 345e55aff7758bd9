"""Bad input of the llama2.c converter: one sentence with the place, nothing written."""

from __future__ import annotations

import struct

import pytest

from pretraining.llama2c import convert_llama2c
from rosa.errors import RosaError
from tests.support.llama2c import (
    write_small,
)


@pytest.fixture
def small(tmp_path):
    return write_small(tmp_path)


def complaint(checkpoint, tokenizer, out):
    before = sorted(out.iterdir()) if out.is_dir() else out.exists()
    with pytest.raises(RosaError) as caught:
        convert_llama2c(checkpoint, tokenizer, out)
    after = sorted(out.iterdir()) if out.is_dir() else out.exists()
    assert before == after
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(("change", "word"), [(-3, "cut short"), (4, "too long")])
def test_wrong_size_names_the_file_and_both_sizes(small, tmp_path, change, word):
    checkpoint, tokenizer = small
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[:change] if change < 0 else data + bytes(change))
    said = complaint(checkpoint, tokenizer, tmp_path / "out")
    assert str(checkpoint) in said
    assert f"{len(data)}" in said
    assert f"{len(data) + change}" in said
    assert word in said


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (0, 0, "dim 0"),
        (0, 13, "dim 13, not divisible by n_heads 2"),
        (0, 10, "head_dim 5, which must be even"),
        (2, -1, "n_layers -1"),
        (3, 3, "calls for"),  # 12 / 3 is a fine head, but then the tables have another size
        (4, 3, "n_heads 2, not divisible by n_kv_heads 3"),
        (5, 0, "vocab_size 0"),
        (6, 2**31 - 1, "calls for"),
        (2, 2**31 - 1, "calls for"),
    ],
)
def test_nonsense_in_the_header(small, tmp_path, field, value, says):
    checkpoint, tokenizer = small
    data = bytearray(checkpoint.read_bytes())
    struct.pack_into("<i", data, 4 * field, value)
    checkpoint.write_bytes(data)
    said = complaint(checkpoint, tokenizer, tmp_path / "out")
    assert says in said
    assert str(checkpoint) in said


def test_later_versions_of_the_format_are_named(small, tmp_path):
    checkpoint, tokenizer = small
    checkpoint.write_bytes(struct.pack("<Ii", 0x616B3432, 2) + bytes(300))
    assert "version 2" in complaint(checkpoint, tokenizer, tmp_path / "out")


def test_a_checkpoint_that_is_not_there_or_too_small(small, tmp_path):
    _, tokenizer = small
    said = complaint(tmp_path / "none.bin", tokenizer, tmp_path / "out")
    assert "none.bin can't be read: No such file" in said
    (tmp_path / "tiny.bin").write_bytes(b"abc")
    assert "has 3 bytes" in complaint(tmp_path / "tiny.bin", tokenizer, tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-1], "entry 263 ends at byte"),
        (lambda data: data[:-9], "within entry 263"),
        (lambda data: data + bytes(9), "tokenizer of another model"),
        (lambda data: b"ab", "has 2 bytes"),
        (lambda data: data[:8] + struct.pack("<i", -5) + data[12:], "entry 0 (at byte 4)"),
        (lambda data: data[:8] + struct.pack("<i", 99) + data[12:], "has length 99"),
        (lambda data: data.replace(b"<0x41>", b"<0x42>"), "entry 68 should be <0x41>"),
        (lambda data: data[:-1] + b"a", "entry 261 again as entry 263"),
        (lambda data: data[:-1] + b"\xff", "entry 263 is not valid UTF-8"),
        (lambda data: data[:-1] + b"c", "no entry for the space"),
        (lambda data: data[:-9] + struct.pack("<f", -3) + data[-5:], "262 and 263 the same score"),
    ],
)
def test_damaged_tokenizer(small, tmp_path, damage, says):
    checkpoint, tokenizer = small
    tokenizer.write_bytes(damage(tokenizer.read_bytes()))
    said = complaint(checkpoint, tokenizer, tmp_path / "out")
    assert says in said
    assert str(tokenizer) in said


def test_a_folder_with_other_things_is_left_alone(small, tmp_path):
    out = tmp_path / "precious"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "llama"}')
    assert "is not empty" in complaint(*small, out)
    assert (out / "config.json").read_text() == '{"model_type": "llama"}'


def test_an_output_that_is_a_file(small, tmp_path):
    (tmp_path / "file").write_text("kept")
    assert "is a file" in complaint(*small, tmp_path / "file")
