from __future__ import annotations

import hashlib
import json
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
)

from mapmerge_core.errors import CheckpointError, DatasetError, MapMergeError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families import find_family
from mapmerge_core.tasks.families._models import language
from mapmerge_core.tasks.metrics import ACCURACY, LOSS
from mapmerge_core.tasks.metrics.perplexity import PERPLEXITY
from mapmerge_core.tasks.outcome import unpack
from mapmerge_core.tasks.subsets import nested_order
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.export.writing import save_merged
from mapmerge_core.weights.vectors.streamed import open_vectors
from tests.tasks.measuring import outcomes

BLOCK, VOCABULARY = 32, 320
WORDS = {
    "Animals": "the cat and a dog chase the bird while one horse eats hay near an old barn",
    "Numbers": "two plus three is five but seven minus one makes six times eight over nine",
}
END = "<end>"


def sentences(task, n, rng):
    return [" ".join(rng.choice(WORDS[task].split(), rng.integers(5, 20))) + "." for _ in range(n)]


def tokenizer_of(texts):
    """A byte-level BPE tokenizer, as GPT-2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)


def train(model, texts, tokenizer, steps):
    stream = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    n = len(stream) // BLOCK
    blocks = torch.tensor(stream[: n * BLOCK]).view(n, BLOCK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        batch = blocks[torch.randint(n, (16,))]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
}


def build_zoo(folder):
    """A tiny Llama, fine-tuned on two kinds of text, with texts to measure it on."""
    rng = np.random.default_rng(0)
    texts = {task: sentences(task, 300, rng) for task in WORDS}
    tokenizer = tokenizer_of([text for some in texts.values() for text in some])
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIGS["llama"])
    train(model, [text for pair in zip(*texts.values(), strict=True) for text in pair], tokenizer, 20)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, some in {"pretrained": [], **texts}.items():
        model.load_state_dict(state)
        if some:
            train(model, some, tokenizer, 40)
        model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "pretrained")
    for task in WORDS:
        (folder / f"{task} text").mkdir()
        for split in ("val", "test"):
            (folder / f"{task} text" / f"{split}.txt").write_text("\n\n".join(sentences(task, 40, rng)))
    return folder


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return build_zoo(tmp_path_factory.mktemp("language"))


def tasks_of(zoo, metric=LOSS):
    return [Task.from_file(task, zoo / f"{task} text", metric) for task in WORDS]


def make_evaluator(zoo, metric=LOSS, precision="float32", **options):
    family = find_family("language").make("", zoo / "pretrained", {"block": BLOCK, **options}, tasks_of(zoo, metric))
    vectors = open_vectors(zoo / "pretrained", {task: zoo / task for task in WORDS}, part=family.part)
    return Evaluator(family, vectors, tasks_of(zoo, metric), device="cpu", precision=precision)


@pytest.fixture(scope="module")
def evaluator(zoo):
    return make_evaluator(zoo)


def plain_losses(model, zoo, task, split, budget=65_536, block=BLOCK, folder="pretrained"):
    """Each block's loss by transformers itself, and its number of predicted tokens."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(zoo / folder)
    stream = []
    for text in (zoo / f"{task} text" / f"{split}.txt").read_text().split("\n\n"):
        stream += [*tokenizer.encode(text), 0]
    stream = stream[:budget]
    blocks = [stream[start : start + block] for start in range(0, len(stream), block)]
    blocks = [each for each in blocks if len(each) == block] or blocks[:1]
    with torch.no_grad():
        losses = [float(model(input_ids=torch.tensor([b]), labels=torch.tensor([b])).loss) for b in blocks]
    return np.array(losses), np.array([len(b) - 1 for b in blocks])


def merged_model(zoo, c):
    """θ(c), tensor by tensor, in a model that transformers itself loads."""
    base = load_file(zoo / "pretrained" / "model.safetensors")
    tuned = [load_file(zoo / task / "model.safetensors") for task in WORDS]
    model = AutoModelForCausalLM.from_pretrained(zoo / "pretrained", dtype=torch.float32)
    state = {
        name: tensor + sum(x * (other[name] - tensor) for x, other in zip(c, tuned, strict=True))
        for name, tensor in base.items()
    }
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("split", ["val", "test"])
def test_losses_are_those_of_transformers(zoo, evaluator, split):
    for c in [(0, 0), (1, 0), (0.4, 0.7)]:
        model = merged_model(zoo, c)
        for task, outcome in evaluator.evaluate(c, split=split).items():
            losses, n_tokens = plain_losses(model, zoo, task, split)
            assert outcome.n_examples == len(losses) > 10
            assert outcome.value == pytest.approx(np.average(losses, weights=n_tokens), abs=1e-5)
            assert unpack(outcome.per_example, outcome.n_examples) == pytest.approx(losses, abs=1e-5)


def test_every_model_is_best_on_its_own_text_and_perplexity_is_exp_of_loss(zoo, evaluator):
    values = np.array([[outcome.value for outcome in evaluator.evaluate(c).values()] for c in np.eye(2)])
    assert (values.argmin(axis=0) == [0, 1]).all()
    other = make_evaluator(zoo, PERPLEXITY)
    assert [outcome.value for outcome in other.evaluate([0.5, 0.5]).values()] == pytest.approx(
        [np.exp(outcome.value) for outcome in evaluator.evaluate([0.5, 0.5]).values()]
    )


def test_fewer_blocks_pass_at_once_when_the_memory_is_too_small(zoo, evaluator, monkeypatch):
    expected, small, seen = evaluator.evaluate([0.4, 0.7]), make_evaluator(zoo), []
    losses = language._losses

    def run_out(model, blocks):
        seen.append(len(blocks))
        if len(blocks) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return losses(model, blocks)

    monkeypatch.setattr(language, "_losses", run_out)
    monkeypatch.setattr(language, "_BATCH_TOKENS", 8 * BLOCK)
    for task, outcome in small.evaluate([0.4, 0.7]).items():
        assert outcome.value == pytest.approx(expected[task].value, rel=1e-6)
    assert seen[:4] == [8, 4, 2, 2], "halved from what passes at once, not from what is asked for"


def test_some_blocks_have_the_losses_that_they_have_among_all(evaluator):
    whole = evaluator.evaluate([0.4, 0.7])
    parts = dict(outcomes(evaluator, [0.4, 0.7], images=10))
    known = {task: unpack(part.per_example, 10) for task, part in parts.items()}
    for task, part in parts.items():
        n = whole[task].n_examples
        every = unpack(whole[task].per_example, n)
        assert (part.n_examples, part.n_total) == (10, n)
        np.testing.assert_allclose(known[task], every[nested_order(None, n)[:10]], rtol=1e-5)
        assert part.value == pytest.approx(known[task].mean(), rel=1e-6)
    for task, refined in outcomes(evaluator, [0.4, 0.7], images=1000, known=known):
        assert (refined.n_examples, refined.n_total) == (whole[task].n_examples, None)
        assert refined.value == pytest.approx(whole[task].value, rel=1e-6)


def test_an_export_is_what_was_measured(zoo, evaluator, tmp_path):
    save_merged(tmp_path / "merged", evaluator.exported_vectors, [0.3, 0.8], like=zoo / "pretrained")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "merged")
    assert tokenizer.encode("the cat") == PreTrainedTokenizerFast.from_pretrained(zoo / "pretrained").encode("the cat")
    for task, outcome in evaluator.evaluate([0.3, 0.8], split="test").items():
        losses, _ = plain_losses(model, zoo, task, "test")
        assert unpack(outcome.per_example, outcome.n_examples) == pytest.approx(losses, abs=1e-5)


def test_a_budget_and_a_short_split(zoo):
    model = merged_model(zoo, (0, 0))
    for options, n in [({"tokens": 100}, 3), ({"tokens": 20}, 1), ({"block": 64, "tokens": 70}, 1)]:
        evaluator = make_evaluator(zoo, **options)
        outcome = evaluator.evaluate([0, 0])["Animals"]
        losses, n_tokens = plain_losses(model, zoo, "Animals", "val", options["tokens"], options.get("block", BLOCK))
        assert outcome.n_examples == len(losses) == n
        assert outcome.value == pytest.approx(np.average(losses, weights=n_tokens), abs=1e-5)


def test_neither_batches_nor_pieces_of_logits_change_losses(evaluator, monkeypatch):
    expected = evaluator.evaluate([0.3, 0.3])
    monkeypatch.setattr(language, "_BATCH_TOKENS", 3 * BLOCK)
    monkeypatch.setattr(language, "_PIECE_BYTES", 4 * VOCABULARY * 7)
    for task, outcome in evaluator.evaluate([0.3, 0.3]).items():
        assert outcome.value == pytest.approx(expected[task].value, abs=1e-6)


def test_bfloat16_is_close_and_the_test_split_is_float32(zoo, evaluator):
    low = make_evaluator(zoo, precision="bfloat16")
    for split, tolerance in (("val", 0.02), ("test", 1e-6)):
        expected = evaluator.evaluate([0.6, 0.2], split=split)
        for task, outcome in low.evaluate([0.6, 0.2], split=split).items():
            assert outcome.value == pytest.approx(expected[task].value, abs=tolerance)
    assert low.family.model_in(torch.bfloat16).dtype == torch.bfloat16
    assert low.family.model_in(torch.float32).config._attn_implementation == "sdpa"


def test_of_a_large_model_only_one_is_held(zoo, monkeypatch):
    monkeypatch.setattr(language, "_HELD_TWICE", 1000)
    low = make_evaluator(zoo, precision="bfloat16")
    expected = {split: low.evaluate([0.6, 0.2], split=split) for split in ("val", "test")}
    first = weakref.ref(low.family.model_in(torch.float32))
    for split in ("val", "test", "val"):
        assert {t: o.per_example for t, o in low.evaluate([0.6, 0.2], split=split).items()} == {
            t: o.per_example for t, o in expected[split].items()
        }
    assert first() is None


def test_models_that_stay_on_disk_are_measured_alike(zoo, evaluator):
    vectors = open_vectors(zoo / "pretrained", {task: zoo / task for task in WORDS}, on_disk=True)
    family = find_family("language").make("", zoo / "pretrained", {"block": BLOCK}, tasks_of(zoo))
    other = Evaluator(family, vectors, tasks_of(zoo), device="cpu", precision="float32")
    for c in [(0.6, 0.2), (0, 0), (0, 1)]:
        expected = evaluator.evaluate(c)
        for task, outcome in other.evaluate(c).items():
            assert outcome.value == pytest.approx(expected[task].value, abs=1e-6)


def test_checkpoints_are_left_as_they_are(zoo):
    def digests():
        return [hashlib.sha256(path.read_bytes()).digest() for path in sorted(zoo.glob("*/*.safetensors"))]

    before = digests()
    make_evaluator(zoo).evaluate([0.5, 0.5])
    assert digests() == before


def test_gpt2_whose_checkpoint_holds_the_body_alone_and_old_constants(zoo, tmp_path):
    """As the original one on the hub does."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(zoo / "pretrained")
    model = GPT2LMHeadModel(CONFIGS["gpt2"]).eval()
    for name in ("pretrained", "tuned"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        state = {key.removeprefix("transformer."): t.clone() for key, t in model.state_dict().items()}
        del state["lm_head.weight"]
        for layer in range(2):
            state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        save_file(state, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        reference = GPT2LMHeadModel(CONFIGS["gpt2"]).eval()
        reference.load_state_dict(model.state_dict())
        train(model, sentences("Animals", 20, np.random.default_rng(1)), tokenizer, 3)
    family = find_family("language").make("", tmp_path / "pretrained", {"block": BLOCK}, tasks_of(zoo))
    left_out = family.left_out("", tmp_path / "pretrained")
    vectors = open_vectors(tmp_path / "pretrained", {"Animals": tmp_path / "tuned"}, without=left_out)
    evaluator = Evaluator(family, vectors, tasks_of(zoo)[:1], device="cpu", precision="float32")
    losses, n_tokens = plain_losses(reference, zoo, "Animals", "test")
    outcome = evaluator.evaluate([1], split="test")["Animals"]
    assert outcome.value == pytest.approx(np.average(losses, weights=n_tokens), abs=1e-5)
    save_merged(tmp_path / "merged", vectors, [1], like=tmp_path / "pretrained")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert plain_losses(again, zoo, "Animals", "test")[0] == pytest.approx(losses, abs=1e-5)


def copy_of(zoo, tmp_path, **changes):
    """The pre-trained model's folder with another configuration."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in (zoo / "pretrained").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def refused(folder, **options):
    with pytest.raises(MapMergeError) as caught:
        find_family("language").make(options.pop("architecture", ""), folder, options, [])
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_a_folder_that_does_not_fit_is_refused_in_one_sentence(zoo, tmp_path):
    folder = copy_of(zoo, tmp_path, num_hidden_layers=3)
    assert "lacks the tensor 'model.layers.2." in refused(folder)
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"].to_dict() | {"num_hidden_layers": 1}))
    assert "holds the tensor 'model.layers.1." in refused(folder)
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"].to_dict() | {"intermediate_size": 48}))
    assert "mlp.down_proj.weight' with shape (32, 64) where the model has (32, 48)" in refused(folder)
    (folder / "config.json").write_text(
        json.dumps(CONFIGS["llama"].to_dict() | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    assert "quantized" in refused(folder)
    (folder / "config.json").write_text(json.dumps(ViTConfig().to_dict()))
    assert "Unrecognized configuration class" in refused(folder)
    (folder / "config.json").write_text('{"model_type": "from-the-future"}')
    assert "knows no models of the type 'from-the-future'" in refused(folder)
    (folder / "config.json").write_text("[]")
    assert "knows no models of the type 'None'" in refused(folder)
    for text in ("{", "[" * 100_000):
        (folder / "config.json").write_text(text)
        assert "is not a configuration in JSON" in refused(folder)
    (folder / "config.json").unlink()
    assert "config.json can't be read (No such file or directory)" in refused(folder)
    assert "is no folder" in refused(folder / "model.safetensors")


def test_code_in_a_folder_is_never_run(zoo, tmp_path):
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    code += "from transformers import PreTrainedConfig\nclass Own(PreTrainedConfig):\n    model_type = 'own'\n"
    folder = copy_of(zoo, tmp_path, model_type="own", auto_map={"AutoConfig": "own.Own"})
    (folder / "own.py").write_text(code)
    assert "needs Python code of its own, which is never run here" in refused(folder)
    config = CONFIGS["llama"].to_dict() | {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    find_family("language").make("", folder, {}, [])
    assert not ran.exists()
    # A kernel on a hub, which transformers would fetch and import.
    config = CONFIGS["llama"].to_dict() | {"attn_implementation": "kernels-community/any"}
    (folder / "config.json").write_text(json.dumps(config))
    model = find_family("language").make("", folder, {}, []).model_in(torch.float32)
    assert model.config._attn_implementation in ("sdpa", "eager")


def test_a_folder_without_a_tokenizer_or_with_anothers_is_refused(zoo, tmp_path):
    folder = copy_of(zoo, tmp_path)
    for path in folder.glob("token*"):
        path.unlink()
    assert "can't read a tokenizer" in refused(folder)
    more = PreTrainedTokenizerFast.from_pretrained(zoo / "pretrained")
    more.add_tokens(["cat"])
    more.save_pretrained(folder)
    family = find_family("language").make("", folder, {}, [])
    with pytest.raises(CheckpointError, match="gives tokens that its model lacks, which knows 320"):
        family.prepare(tasks_of(zoo)[0], "val")


def test_settings_that_cannot_be_used(zoo, tmp_path):
    folder = zoo / "pretrained"
    assert "Blocks of 65 tokens are longer than the 64" in refused(folder, block=65)
    assert "can't have block = 1: give a whole number of at least 2, or none." in refused(folder, block=1)
    assert "can't have tokens = '1e3': give a whole number of at least 2." in refused(folder, tokens="1e3")
    assert "has no setting 'blocks': it has block, tokens." in refused(folder, blocks=3)
    assert "leave the architecture 'llama' out" in refused(folder, architecture="llama")
    for split in ("val", "test"):
        (tmp_path / f"{split}.txt").write_text("")
    family = find_family("language").make("", folder, {}, [])
    with pytest.raises(DatasetError):
        family.prepare(Task.from_file("Empty", tmp_path, LOSS), "val")
    with pytest.raises(MapMergeError, match="can't be measured by accuracy with this family of models: choose loss, "):
        family.use([Task("Animals", DataSource(path=tmp_path), (ACCURACY,))])


def test_a_fine_tuned_model_with_another_vocabulary_is_refused(zoo, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(zoo / "Animals")
    model.resize_token_embeddings(VOCABULARY + 1)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'model.embed_tokens.weight' has shape \(321, 32\)"):
        open_vectors(zoo / "pretrained", {"Animals": tmp_path})
