"""`rosa convert`: against llama2.c's arithmetic and merging, written here from its definition."""

from __future__ import annotations

import itertools
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rosa.cli import main as cli
from rosa.convert import convert_llama2c
from rosa.convert.tokenizer import hugging_face_tokenizer, read_tokenizer

# llama2.c, written independently


class Sizes(NamedTuple):
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    seq_len: int
    tied: bool


def random_weights(sizes, seed):
    """Tensors in the order of the file."""
    rng = np.random.default_rng(seed)
    n, d, kv = sizes.layers, sizes.dim, sizes.dim // sizes.heads * sizes.kv_heads

    def draw(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def near_one(*shape):
        return (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)

    weights = {
        "embed": draw(sizes.vocab, d) * np.float32(np.sqrt(d)),
        "norm1": near_one(n, d),
        "q": draw(n, d, d),
        "k": draw(n, kv, d),
        "v": draw(n, kv, d),
        "o": draw(n, d, d),
        "norm2": near_one(n, d),
        "gate": draw(n, sizes.hidden, d),
        "down": draw(n, d, sizes.hidden),
        "up": draw(n, sizes.hidden, d),
        "norm": near_one(d),
        "cos": draw(sizes.seq_len, d // sizes.heads // 2),  # llama2.c skips them, whatever they are
        "sin": draw(sizes.seq_len, d // sizes.heads // 2),
    }
    return weights if sizes.tied else {**weights, "head": draw(sizes.vocab, d)}


def write_checkpoint(path, sizes, weights):
    vocab = sizes.vocab if sizes.tied else -sizes.vocab
    header = struct.pack("<7i", *sizes[:5], vocab, sizes.seq_len)
    path.write_bytes(header + b"".join(w.astype("<f4").tobytes() for w in weights.values()))


def llama2c_logits(sizes, weights, tokens):
    """run.c's `forward` for each position in turn, in float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    head = sizes.dim // sizes.heads
    keys = [[] for _ in range(sizes.layers)]
    values = [[] for _ in range(sizes.layers)]

    def rms(x, gain):
        return x / np.sqrt(np.mean(x * x) + 1e-5) * gain

    def rotate(x, position):
        out = x.copy()
        for i in range(0, len(x), 2):
            angle = position / 10000 ** ((i % head) / head)
            out[i] = x[i] * np.cos(angle) - x[i + 1] * np.sin(angle)
            out[i + 1] = x[i] * np.sin(angle) + x[i + 1] * np.cos(angle)
        return out

    logits = []
    for position, token in enumerate(tokens):
        x = w["embed"][token]
        for layer in range(sizes.layers):
            h = rms(x, w["norm1"][layer])
            q = rotate(w["q"][layer] @ h, position)
            keys[layer].append(rotate(w["k"][layer] @ h, position))
            values[layer].append(w["v"][layer] @ h)
            out = np.empty(sizes.dim)
            for i in range(sizes.heads):
                mine = slice(i * head, (i + 1) * head)
                kv = i // (sizes.heads // sizes.kv_heads)
                shared = slice(kv * head, (kv + 1) * head)
                scores = np.array([q[mine] @ k[shared] for k in keys[layer]]) / np.sqrt(head)
                probs = np.exp(scores - scores.max())
                probs /= probs.sum()
                out[mine] = sum(p * v[shared] for p, v in zip(probs, values[layer], strict=True))
            x = x + w["o"][layer] @ out
            h = rms(x, w["norm2"][layer])
            gate = w["gate"][layer] @ h
            x = x + w["down"][layer] @ (gate / (1 + np.exp(-gate)) * (w["up"][layer] @ h))
        logits.append(w["head" if "head" in w else "embed"] @ rms(x, w["norm"]))
    return np.array(logits)


def write_tokenizer(path, entries):
    body = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in entries)
    path.write_bytes(struct.pack("<i", max(len(piece) for piece, _ in entries)) + body)


def read_entries(path):
    data, end, entries = path.read_bytes(), 4, []
    while end < len(data):
        score, length = struct.unpack_from("<fi", data, end)
        entries.append((data[end + 8 : end + 8 + length], score))
        end += 8 + length
    return entries


def with_bytes(pieces):
    """Entries of a whole tokenizer: specials, bytes, then `pieces`, best score first."""
    names = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256))]
    return [
        *((name.encode(), 0.0) for name in names),
        *((piece.encode(), -float(rank)) for rank, piece in enumerate(pieces)),
    ]


def llama2c_encode(entries, text):
    """run.c's `encode`, with BOS and without EOS."""
    ids = {piece: index for index, (piece, _) in enumerate(entries)}
    tokens = [ids[b" "]] if text else []
    for character in text:
        raw = character.encode()
        tokens += [ids[raw]] if raw in ids else [byte + 3 for byte in raw]
    while True:
        best, where = None, None
        for i in range(len(tokens) - 1):
            joined = ids.get(entries[tokens[i]][0] + entries[tokens[i + 1]][0])
            if joined is not None and (best is None or entries[joined][1] > entries[best][1]):
                best, where = joined, i
        if best is None:
            return [1, *tokens]
        tokens[where : where + 2] = [best]


def llama2c_decode(entries, tokens):
    """run.c's `decode` of everything after BOS."""
    out = b""
    for previous, token in itertools.pairwise(tokens):
        piece = entries[token][0]
        if previous == 1:
            piece = piece.removeprefix(b" ")
        as_byte = re.fullmatch(rb"<0x([0-9A-F]{2})>", piece)
        out += bytes([int(as_byte[1], 16)]) if as_byte else piece
    return out.decode()


SMALL = Sizes(dim=12, hidden=20, layers=2, heads=2, kv_heads=1, vocab=264, seq_len=8, tied=True)
FIVE_PIECES = with_bytes(["ab", " ab", "a", "b", " "])


@pytest.fixture
def small(tmp_path):
    """Paths of a small valid checkpoint and tokenizer."""
    checkpoint, tokenizer = tmp_path / "small.bin", tmp_path / "tok.bin"
    write_checkpoint(checkpoint, SMALL, random_weights(SMALL, 0))
    write_tokenizer(tokenizer, FIVE_PIECES)
    return checkpoint, tokenizer


# The model


@st.composite
def sizes_strategy(draw):
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    return Sizes(
        dim=heads * 2 * draw(st.integers(1, 4)),
        hidden=draw(st.integers(1, 24)),
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=kv_heads,
        vocab=264,
        seq_len=draw(st.integers(1, 16)),
        tied=draw(st.booleans()),
    )


@settings(max_examples=20, deadline=None)
@given(sizes=sizes_strategy(), seed=st.integers(0, 2**16))
def test_logits_equal_llama2cs(sizes, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    weights = random_weights(sizes, seed)
    write_checkpoint(folder / "m.bin", sizes, weights)
    write_tokenizer(folder / "t.bin", FIVE_PIECES)
    convert_llama2c(folder / "m.bin", folder / "t.bin", folder / "out")
    model = AutoModelForCausalLM.from_pretrained(folder / "out")
    tokens = np.random.default_rng(seed).integers(0, sizes.vocab, 7).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].double().numpy()
    expected = llama2c_logits(sizes, weights, tokens)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=2e-5)


def test_the_returned_model_equals_the_written_one(small, tmp_path):
    returned = convert_llama2c(*small, tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(returned(ids).logits, written(ids).logits)


def test_an_untied_head_stays_its_own(tmp_path, small):
    sizes = SMALL._replace(tied=False)
    weights = random_weights(sizes, 3)
    write_checkpoint(tmp_path / "untied.bin", sizes, weights)
    model = convert_llama2c(tmp_path / "untied.bin", small[1], tmp_path / "out")
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), weights["head"])
    np.testing.assert_array_equal(
        model.model.embed_tokens.weight.detach().numpy(), weights["embed"]
    )


# The tokenizer


def converted_tokenizer(folder: Path, entries):
    write_tokenizer(folder / "t.bin", entries)
    return hugging_face_tokenizer(read_tokenizer(folder / "t.bin", len(entries)), 512)


@st.composite
def trained_pieces(draw):
    """Pieces as BPE training leaves them: each a union of two earlier ones; letters score last."""
    letters = [" ", "a", "b", "é"]
    joined: list[str] = []
    for _ in range(draw(st.integers(0, 12))):
        known = letters + joined
        piece = draw(st.sampled_from(known)) + draw(st.sampled_from(known))
        if piece not in known:
            joined.append(piece)
    return joined + letters


@settings(max_examples=150, deadline=None)
@given(pieces=trained_pieces(), text=st.text(alphabet=" abé\n€😀", max_size=24))
def test_random_tokenizers_encode_and_decode_as_llama2c(pieces, text, tmp_path_factory):
    entries = with_bytes(pieces)
    tokenizer = converted_tokenizer(tmp_path_factory.mktemp("tokenizer"), entries)
    tokens = tokenizer(text).input_ids
    assert tokens == llama2c_encode(entries, text)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert llama2c_decode(entries, tokens) == text


@pytest.fixture(scope="module")
def stories(shared_data, tmp_path_factory):
    """stories260K: the folder with the originals and the converted one."""
    source, out = shared_data / "stories260K", tmp_path_factory.mktemp("stories") / "model"
    argv = ["convert", str(source / "stories260K.bin"), str(source / "tok512.bin"), str(out)]
    assert cli.main(argv) == 0
    return source, out


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=60))
def test_the_real_tokenizer_encodes_any_text_as_llama2c(stories, text):
    assume(not re.search("<unk>|</?s>", text))
    source, out = stories
    entries = read_entries(source / "tok512.bin")
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokens = tokenizer(text).input_ids
    assert tokens == llama2c_encode(entries, text)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_the_real_tokenizer_merges_english_as_llama2c(stories, shared_data):
    source, out = stories
    entries = read_entries(source / "tok512.bin")
    tokenizer = AutoTokenizer.from_pretrained(out)
    story = greedy_story(source)
    for text in (story, *story.split("\n")):
        tokens = tokenizer(text).input_ids
        assert tokens == llama2c_encode(entries, text)
        assert len(tokens) < len(text) / 1.5  # it does merge


# stories260K


def greedy_story(source):
    """The text that stories260K.md gives for temperature 0."""
    page = (source / "stories260K.md").read_text("utf-8")
    return re.search(r"-t 0\.0\n(.*?)\n```", page, re.DOTALL)[1]


def generate(model, tokenizer):
    start = torch.tensor([[model.config.bos_token_id]])
    tokens = model.generate(
        input_ids=start, attention_mask=torch.ones_like(start), max_new_tokens=256, do_sample=False
    )
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def test_greedy_text_of_stories260k_is_the_published_one(stories):
    source, out = stories
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.num_parameters() == 260_032
    assert generate(model, AutoTokenizer.from_pretrained(out)) == greedy_story(source)


def test_an_untrained_rosa_adapter_leaves_the_greedy_text_alone(stories):
    from peft import get_peft_model

    from rosa import RosaConfig

    source, out = stories
    base = AutoModelForCausalLM.from_pretrained(out)
    model = get_peft_model(base, RosaConfig(r=8, task_type="CAUSAL_LM"))  # head_dim 8: one pair
    assert model.get_nb_trainable_parameters()[0] > 0
    assert generate(model, AutoTokenizer.from_pretrained(out)) == greedy_story(source)


def test_special_tokens_are_llama2cs(stories):
    _, out = stories
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 512
    assert model.generation_config.bos_token_id == 1
    assert set(model.generation_config.eos_token_id) == {1, 2}


# Bad input: one sentence with the place, exit code 2, nothing written


def complaint(capsys, checkpoint, tokenizer, out):
    before = sorted(out.iterdir()) if out.is_dir() else out.exists()
    assert cli.main(["convert", str(checkpoint), str(tokenizer), str(out)]) == 2
    after = sorted(out.iterdir()) if out.is_dir() else out.exists()
    assert before == after
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(("change", "word"), [(-3, "cut short"), (4, "too long")])
def test_wrong_size_names_the_file_and_both_sizes(capsys, small, tmp_path, change, word):
    checkpoint, tokenizer = small
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[:change] if change < 0 else data + bytes(change))
    said = complaint(capsys, checkpoint, tokenizer, tmp_path / "out")
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
def test_nonsense_in_the_header(capsys, small, tmp_path, field, value, says):
    checkpoint, tokenizer = small
    data = bytearray(checkpoint.read_bytes())
    struct.pack_into("<i", data, 4 * field, value)
    checkpoint.write_bytes(data)
    said = complaint(capsys, checkpoint, tokenizer, tmp_path / "out")
    assert says in said
    assert str(checkpoint) in said


def test_later_versions_of_the_format_are_named(capsys, small, tmp_path):
    checkpoint, tokenizer = small
    checkpoint.write_bytes(struct.pack("<Ii", 0x616B3432, 2) + bytes(300))
    assert "version 2" in complaint(capsys, checkpoint, tokenizer, tmp_path / "out")


def test_a_checkpoint_that_is_not_there_or_too_small(capsys, small, tmp_path):
    _, tokenizer = small
    said = complaint(capsys, tmp_path / "none.bin", tokenizer, tmp_path / "out")
    assert "none.bin can't be read: No such file" in said
    (tmp_path / "tiny.bin").write_bytes(b"abc")
    assert "has 3 bytes" in complaint(capsys, tmp_path / "tiny.bin", tokenizer, tmp_path / "out")


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
def test_damaged_tokenizer(capsys, small, tmp_path, damage, says):
    checkpoint, tokenizer = small
    tokenizer.write_bytes(damage(tokenizer.read_bytes()))
    said = complaint(capsys, checkpoint, tokenizer, tmp_path / "out")
    assert says in said
    assert str(tokenizer) in said


def test_a_folder_with_other_things_is_left_alone(capsys, small, tmp_path):
    out = tmp_path / "precious"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "llama"}')
    assert "is not empty" in complaint(capsys, *small, out)
    assert (out / "config.json").read_text() == '{"model_type": "llama"}'


def test_an_output_that_is_a_file(capsys, small, tmp_path):
    (tmp_path / "file").write_text("kept")
    assert "is a file" in complaint(capsys, *small, tmp_path / "file")


def test_an_earlier_conversion_is_replaced(small, tmp_path, capsys):
    checkpoint, tokenizer = small
    convert_llama2c(*small, tmp_path / "out")
    weights = random_weights(SMALL, 7)
    write_checkpoint(checkpoint, SMALL, weights)
    assert cli.main(["convert", str(checkpoint), str(tokenizer), str(tmp_path / "out")]) == 0
    assert "2 layers, 12 wide" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(
        model.model.embed_tokens.weight.detach().numpy(), weights["embed"]
    )
