"""Text in bytes and in tokens: nothing is lost, windows are of a number of symbols, bits are per character."""

import json
import math
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from fivefold.apps.compress import _check_whole
from fivefold.data import load_data, load_examples
from fivefold.data.examples import read_examples
from fivefold.data.raw import PARTS
from fivefold.errors import DataError
from fivefold.evaluation.bits import bits
from fivefold.evaluation.evaluate import density
from fivefold.evaluation.score import frame_of, score_examples
from fivefold.report import pairs
from fivefold.report.columns import density_column
from fivefold.space import Space, Vocabulary
from fivefold.system import Density, System
from fivefold.tools.baselines import IndependentDims
from tests.test_texts import DOCUMENTS, GERMAN

ASCII = "".join(np.random.default_rng(0).choice(list("aaaabbbccd e.\n"), 6400))
ODD = ["", "plain", "Über größer €", "😀🏴 mixed\x00\r\n\t  \x85\xa0", "ab " * 40_000 + "ü"]


@pytest.fixture
def learnt():
    pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    return Vocabulary.learn([GERMAN], 300)


class Marginal(System):
    """All symbols have their training frequencies, wherever they stand."""

    densities = {"text": Density.EXACT}

    def build(self):
        self.register_buffer("log_share", torch.zeros(self.space.levels, dtype=torch.float64))

    def learn(self, data):
        counts = torch.bincount(data.train.batch(slice(None)).x.flatten(), minlength=self.space.levels)
        self.log_share.copy_((counts / counts.sum()).log())
        return self

    def _sample(self, n, condition):
        return torch.multinomial(self.log_share.exp(), n * self.space.dims, True).view(n, -1)

    def _log_prob(self, x, condition):
        return self.log_share[x].sum(1)

    @property
    def device(self):
        return torch.device("cpu")


def test_what_is_encoded_decodes_to_itself(learnt):
    assert len(learnt) == 300
    for vocabulary in (Vocabulary(), learnt):
        assert Vocabulary.from_json(json.loads(json.dumps(asdict(vocabulary)))) == vocabulary
        for text in (*ODD, GERMAN):
            codes = vocabulary.encode(text)
            assert vocabulary.decode(codes) == text
            assert vocabulary.characters[codes].sum() == len(text)
    assert Vocabulary().encode("é").tolist() == [0xC3, 0xA9]
    assert Vocabulary().decode([0xC3]) == "\ufffd"
    assert len(learnt.encode(GERMAN)) < len(GERMAN) / 2
    assert Vocabulary.learn([GERMAN], 300) == learnt


def test_a_periodic_text_is_a_token_over_and_over():
    pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    data = load_data(["abcdefgh " * 500], vocabulary="bpe:300", length=20)
    assert data.space.levels < 300  # no more pairs to merge
    x = data.test.batch(slice(None)).x
    assert set(data.space.decode(x[1:])) == {" abcdefgh" * 20}
    assert data.space.units(x).tolist() == [179.0] + [180.0] * (len(x) - 1)
    assert any(" characters on average" in note for note in data.notes)


@pytest.mark.parametrize("vocabulary", ["bytes", "bpe:290"])
def test_windows_of_tokens_make_up_the_texts(vocabulary, tmp_path):
    if vocabulary != "bytes":
        pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    (tmp_path / "a.txt").write_text(GERMAN, encoding="utf-8")
    data = load_data(tmp_path / "a.txt", vocabulary=vocabulary, length=12)
    space = data.space
    assert space.shape == (12,)
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    assert "12 " + space.text_symbols in data.describe()
    test = data.test.batch(slice(None)).x
    assert space.vocabulary.joined(test.flatten().tolist()).decode("utf-8", "ignore") in GERMAN
    assert abs(int(space.units(test).sum()) - 0.15 * len(GERMAN)) < 40
    other = load_examples([GERMAN], space).x  # the whole text, in the same tokens
    assert space.vocabulary.decode(other.flatten().tolist())[:-1] in GERMAN
    assert space.units(other).sum() > len(GERMAN) - 60
    assert np.array_equal(space.encode(read_examples(tmp_path / "a.txt", space)), other)
    assert load_data(tmp_path / "a.txt", **data.arguments).fingerprint == data.fingerprint
    assert load_data(tmp_path / "a.txt", length=12).fingerprint != data.fingerprint
    again = load_data([GERMAN[::-1] * 2], vocabulary=space.vocabulary, length=12)
    assert again.space == space
    with pytest.raises(DataError, match=f"expected texts of 12 {space.text_symbols}, got one of 1"):
        space.encode(["x"])


@pytest.mark.parametrize("vocabulary", ["bytes", "bpe:260"])
def test_no_window_is_of_two_documents(vocabulary):
    if vocabulary != "bytes":
        pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    texts = [document.replace(document[0], chr(0xE0 + i)) for i, document in enumerate(DOCUMENTS)]
    data = load_data(texts, vocabulary=vocabulary, length=8)
    for part in PARTS:
        for window in data.space.decode(getattr(data, part).batch(slice(None)).x):
            assert len(set(window) - {"\ufffd"}) == 1


def test_bits_per_character_are_the_same_in_characters_and_in_bytes():
    characters, as_bytes = load_data([ASCII]), load_data([ASCII], vocabulary="bytes")
    rows = [density(Marginal(data.space).learn(data), data) for data in (characters, as_bytes)]
    assert rows[0]["bits_per_dim"] == pytest.approx(rows[1]["bits_per_dim"], abs=1e-9)
    assert rows[0]["bits_error"] == pytest.approx(rows[1]["bits_error"], rel=1e-6)
    assert rows[0]["bits_per_dim"] == pytest.approx(-rows[0]["nats"] / 64 / math.log(2))
    assert as_bytes.space.levels == 256
    table = [{"status": "ok", "label": "a", "density": row} for row in rows]
    assert density_column(table).title == "Bits per character"


def test_scores_are_in_bits_per_character():
    data = load_data([GERMAN], vocabulary="bytes")
    system = Marginal(data.space).learn(data)
    found = score_examples(system, data.test)
    row, each = density(system, data), 1 / math.log(2) / found.units
    assert row["bits_per_dim"] == pytest.approx(float((-found.log_prob).sum() / found.units.sum() / math.log(2)))
    frame = frame_of(system, found)
    assert np.allclose(frame["bits_per_character"], -frame["log_prob_nats"] * each.numpy())
    assert len(set(found.units.tolist())) > 1


def test_bits_are_divided_by_characters_not_by_bytes():
    """Of 0, 1 or 2 bytes more a character: in a uniform law over 256 bytes 8, 16 and 24 bits each."""
    for symbol, each in (("x", 8), ("é", 16), ("€", 24)):
        data = load_data([symbol * 4000], vocabulary="bytes", length=12)
        system = Marginal(data.space)
        system.log_share.fill_(-math.log(256))
        row = density(system, data)
        assert row["bits_per_dim"] == pytest.approx(each)
        assert row["bits_error"] == pytest.approx(0, abs=1e-9)


def test_the_error_of_a_ratio_is_what_it_varies_by():
    """Windows stand for unequal numbers of characters, on which their nats depend."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        units = torch.randint(20, 60, (100,), generator=generator).double()
        found.append(bits(-2 * units + torch.randn(100, generator=generator) * 3, units))
    values, errors = np.array([one.value for one in found]), np.array([one.error for one in found])
    assert values.mean() == pytest.approx(2 / math.log(2), rel=1e-3)
    assert errors.mean() == pytest.approx(values.std(), rel=0.12)


def test_pairs_are_told_apart_in_bits(learnt):
    data = load_data([GERMAN], vocabulary=learnt, length=10)
    keep = {}
    row = {"density": density(Marginal(data.space).learn(data), data, keep=keep)}
    shared = pairs.of_row(row, keep)
    assert shared["bits_per_dim"].terms.std(ddof=1) / math.sqrt(len(data.test)) == pytest.approx(
        row["density"]["bits_error"], rel=1e-4
    )


def test_samples_are_strings_and_the_baseline_fits(learnt):
    data = load_data([GERMAN], vocabulary=learnt, length=10)
    assert all(isinstance(text, str) for text in Marginal(data.space).learn(data).sample(3, seed=0))
    base = IndependentDims(data.space, data.train.x)
    assert len(data.space.decode(base.sample(2, seed=0))) == 2


def test_only_whole_characters_are_compressed():
    space = Space("text", (2,), levels=256, vocabulary=Vocabulary())
    _check_whole(space, torch.tensor([[0x61, 0x62], [0xC3, 0xA9]]), "a.txt")
    with pytest.raises(DataError, match=r"a window of a\.txt begins or ends within a character"):
        _check_whole(space, torch.tensor([[0x61, 0xC3]]), "a.txt")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([GERMAN], {"vocabulary": "words"}, "is characters, bytes, bpe or bpe:512, got 'words'"),
        ([GERMAN], {"vocabulary": "bpe:"}, "got 'bpe:'"),
        ([GERMAN], {"vocabulary": "bpe:256"}, "257 to 65,536 tokens, got 256"),
        ("digits", {"vocabulary": "bytes"}, r"vocabulary \(--vocabulary\) is for text data; these are image data"),
        (["aaaa bbbb " * 9], {"vocabulary": "bpe", "length": 60}, "has no document of 60 tokens, at most of"),
    ],
)
def test_refusals(source, options, message):
    if options["vocabulary"] == "bpe":
        pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    with pytest.raises(DataError, match=message):
        load_data(source, **options)


def test_the_extra_is_named_only_where_it_is_needed(learnt, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"fivefold\[bpe\]"):
        load_data([GERMAN], vocabulary="bpe")
    assert load_data([GERMAN], vocabulary="bytes").space.levels == 256
    assert learnt.decode([256]) == learnt.tokens[256].decode()


def test_a_density_of_tokens_is_a_bound_on_that_of_the_text():
    """There are other ways to split it; into bytes there are none."""
    pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    for vocabulary, kind in (("bytes", Density.EXACT), ("bpe:260", Density.LOWER_BOUND)):
        assert Marginal(load_data([GERMAN * 20], vocabulary=vocabulary, length=8).space).density is kind
