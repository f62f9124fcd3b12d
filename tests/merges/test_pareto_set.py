from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mapmerge_core.errors import CheckpointError, MapMergeError, PointError
from mapmerge_core.merges._pareto_set import Block, Personalisation, PreparedParetoMerging, find_blocks
from mapmerge_core.registries import MERGES
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.merges.helpers import make_evaluator

MERGE = MERGES["pareto_merging"]({"rank": 2})
D = 6
SHAPES = {
    "blocks.0.attn.in_proj_weight": (3 * D, D),
    "blocks.0.attn.in_proj_bias": (3 * D,),
    "blocks.0.attn.out_proj.weight": (D, D),
    "blocks.0.mlp.weight": (4, D),
    "h.1.attn.c_attn.weight": (D, 3 * D),
    "conv.weight": (2, 3, 2, 2),
}


def make_models(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def model(scale):
        return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    pretrained = {name: tensor.to(dtype) for name, tensor in model(1.0).items()}
    finetuned = {
        task: {name: (pretrained[name].float() + change).to(dtype) for name, change in model(0.1).items()}
        for task in "ABC"
    }
    return pretrained, finetuned


def make_set(vectors, rank=2, seed=1):
    personalisation = Personalisation(find_blocks(vectors), len(vectors), rank, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for G in personalisation.G:
            G.copy_(torch.randn(G.shape, generator=generator))
    lambdas = np.random.default_rng(seed).normal(0.3, 0.2, (len(vectors.layers), len(vectors)))
    personalisation.requires_grad_(requires_grad=False)
    return PreparedParetoMerging(MERGE, vectors, vectors, lambdas, personalisation)


def at(learned, gamma):
    return dict(learned.tensors(gamma))


def written_out(pretrained, finetuned, vectors, learned, gamma):
    """W_pre + Σ λ_k V_k + Σ γ_k A G_k Bᵀ, every sum a loop, in float64."""
    gamma = np.asarray(gamma) / np.sum(gamma)
    merged = {name: tensor.double().numpy().copy() for name, tensor in pretrained.items()}
    for row, name in zip(learned.lambdas, vectors.layers, strict=True):
        for coefficient, task in zip(row, finetuned, strict=True):
            v = finetuned[task][name].double().numpy() - pretrained[name].double().numpy()
            merged[name] += coefficient * v
    parts = learned.personalisation
    for block, *factors in zip(parts.blocks, parts.A, parts.B, parts.G, strict=True):
        A, B, G = (parameter.detach().double().numpy() for parameter in factors)
        for k, share in enumerate(gamma):
            part = share * A @ G[:, :, k] @ B.T
            rows, columns = slice(block.row, block.row + block.c), slice(block.column, block.column + block.d)
            merged[block.tensor][rows, columns] += part
    return merged


@pytest.mark.parametrize("gamma", [[1, 1, 1], [1, 0, 0], [0.2, 0.5, 0.3], [4, 1, 3]])
def test_folded_weights_are_the_sum_written_out(gamma):
    pretrained, finetuned = make_models()
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    learned = make_set(vectors)
    merged, expected = at(learned, gamma), written_out(pretrained, finetuned, vectors, learned, gamma)
    assert list(merged) == list(pretrained)
    for name, tensor in merged.items():
        assert tensor.double().numpy() == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


def test_only_proportions_of_a_preference_count():
    vectors = TaskVectors.from_state_dicts(*make_models())
    learned = make_set(vectors)
    once, twice = at(learned, [1, 2, 5]), at(learned, [2, 4, 10])
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_a_float16_model_stays_one():
    pretrained, finetuned = make_models(torch.float16)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    learned = make_set(vectors)
    merged = at(learned, [1, 2, 3])
    expected = written_out(pretrained, finetuned, vectors, learned, [1, 2, 3])
    for name, tensor in merged.items():
        assert tensor.dtype == torch.float16
        # Half of float16's last place, and what float32 may add to it: rounded once, and at the end.
        place = np.spacing(np.abs(expected[name]).astype(np.float16)).astype(np.float64)
        assert (np.abs(tensor.double().numpy() - expected[name]) <= 0.51 * place).all(), name


def test_merging_leaves_the_base_as_it_was():
    learned = make_set(TaskVectors.from_state_dicts(*make_models()))
    before = at(learned, [1, 0, 0])
    at(learned, [0, 0, 1])
    assert all(torch.equal(tensor, at(learned, [1, 0, 0])[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    "gamma", [[1, -0.1, 0], [1, np.nan, 0], [1, np.inf, 0], [0, 0, 0], [1, 1], [[1, 1, 1]], [1, 1, 1, 1]]
)
def test_what_is_no_preference_is_refused(gamma):
    learned = make_set(TaskVectors.from_state_dicts(*make_models()))
    with pytest.raises(PointError):
        at(learned, gamma)


def test_attention_is_personalised_and_a_fused_matrix_counts_as_three():
    vectors = TaskVectors.from_state_dicts(*make_models())
    fused, _, out, _, transposed, _ = SHAPES
    assert find_blocks(vectors) == (
        *(Block(fused, row, 0, D, D) for row in (0, D, 2 * D)),
        Block(out, 0, 0, D, D),
        *(Block(transposed, 0, column, D, D) for column in (0, D, 2 * D)),
    )


def test_a_clips_blocks_are_those_of_its_attention(tiny_zoo):
    vectors = make_evaluator(tiny_zoo).vectors
    expected = []
    for layer in (0, 1):
        name = f"visual.transformer.resblocks.{layer}.attn"
        expected += [Block(f"{name}.in_proj_weight", row, 0, 32, 32) for row in (0, 32, 64)]
        expected.append(Block(f"{name}.out_proj.weight", 0, 0, 32, 32))
    assert list(find_blocks(vectors)) == expected


def test_tables_of_positions_are_no_projections():
    names = (
        "layers.0.attn.relative_position_bias_table",
        "attnpool.positional_embedding",
        "SelfAttention.relative_attention_bias.weight",
        "SelfAttention.q.weight",
    )
    vectors = TaskVectors.from_state_dicts(
        {name: torch.zeros(4, 3) for name in names}, {"A": {name: torch.ones(4, 3) for name in names}}
    )
    assert find_blocks(vectors) == (Block("SelfAttention.q.weight", 0, 0, 4, 3),)


def test_tensors_can_be_named():
    vectors = TaskVectors.from_state_dicts(*make_models())
    assert find_blocks(vectors, ["*.mlp.*"]) == (Block("blocks.0.mlp.weight", 0, 0, 4, D),)


@pytest.mark.parametrize("pattern", ["visual.*", "conv.weight", "blocks.0.attn.in_proj_bias"])
def test_names_of_no_merged_matrix_are_refused(pattern):
    vectors = TaskVectors.from_state_dicts(*make_models())
    with pytest.raises(CheckpointError, match=f"'{pattern}' names no weight matrix".replace("*", r"\*")):
        find_blocks(vectors, [pattern])


def test_a_model_without_attention_is_refused():
    pretrained, finetuned = make_models()
    kept = ("blocks.0.mlp.weight", "conv.weight")
    vectors = TaskVectors.from_state_dicts(
        {name: pretrained[name] for name in kept},
        {task: {name: model[name] for name in kept} for task, model in finetuned.items()},
    )
    with pytest.raises(CheckpointError, match=r"no attention projections.*such as 'blocks\.0\.mlp\.weight'"):
        find_blocks(vectors)


@pytest.mark.parametrize("patterns", [None, ["*"], ["conv.*"]])
def test_a_model_without_matrices_is_refused(patterns):
    pretrained, finetuned = make_models()
    vectors = TaskVectors.from_state_dicts(
        {"conv.weight": pretrained["conv.weight"]},
        {task: {"conv.weight": model["conv.weight"]} for task, model in finetuned.items()},
    )
    with pytest.raises(CheckpointError, match="have no weight matrices to personalise"):
        find_blocks(vectors, patterns)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_extra_parameters_follow_the_formula(rank):
    vectors = TaskVectors.from_state_dicts(*make_models())
    blocks = find_blocks(vectors)
    personalisation = Personalisation(blocks, 3, rank)
    assert personalisation.n_parameters == sum(rank * (b.c + b.d) + rank**2 * 3 for b in blocks)
    assert make_set(vectors, rank).n_extra == 7 * (rank * 2 * D + rank**2 * 3)


@pytest.mark.parametrize("rank", [0, D + 1])
def test_a_rank_beyond_the_matrices_is_refused(rank):
    vectors = TaskVectors.from_state_dicts(*make_models())
    with pytest.raises(MapMergeError, match=f"rank must be from 1 to {D} for these models, not {rank}"):
        Personalisation(find_blocks(vectors), 3, rank)


def test_the_norm_is_that_of_the_tensors():
    learned = make_set(TaskVectors.from_state_dicts(*make_models()))
    parts, total = learned.personalisation, 0.0
    for A, B, G in zip(parts.A, parts.B, parts.G, strict=True):
        tensor = torch.einsum("ci,ijk,dj->cdk", A, G, B)
        total += float((tensor.detach() ** 2).sum())
    assert float(parts.squared_norm().detach()) == pytest.approx(total, rel=1e-4)


def test_a_new_personalisation_adds_nothing_and_its_factors_keep_the_scale():
    vectors = TaskVectors.from_state_dicts(*make_models())
    personalisation = Personalisation(find_blocks(vectors), 3, 2, seed=4)
    assert all(not G.any() for G in personalisation.G)
    for A, B, block in zip(personalisation.A, personalisation.B, personalisation.blocks, strict=True):
        assert A.shape == (block.c, 2)
        assert B.shape == (block.d, 2)
        assert float(A.detach().abs().max()) <= np.sqrt(6 / 2)  # Kaiming's bound for a fan-in of r ...
        assert float(B.detach().abs().max()) <= np.sqrt(6 / block.d)  # ... and of d
        assert float(A.detach().std()) > 0


def test_a_set_is_read_as_it_was_saved(tmp_path):
    vectors = TaskVectors.from_state_dicts(*make_models())
    learned, file = make_set(vectors), tmp_path / "new" / "set.safetensors"
    learned.save(file)
    expected, found = at(learned, [1, 2, 3]), at(MERGE.load(file, vectors, vectors), [1, 2, 3])
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    n = len(learned.personalisation.blocks)
    assert load_file(file).keys() == {"lambda", *(f"{kind}.{i}" for kind in "ABG" for i in range(n))}
    header = read_header(file)
    assert header["models"] == ["A", "B", "C"]
    assert header["layers"] == {name: list(SHAPES[name]) for name in vectors.layers}
    assert header["settings"]["rank"] == 2
    assert [file.name for file in file.parent.iterdir()] == ["set.safetensors"]


def read_header(file):
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["mapmerge"])


def test_a_set_of_other_models_is_refused(tmp_path):
    pretrained, finetuned = make_models()
    file = tmp_path / "set.safetensors"
    make_set(TaskVectors.from_state_dicts(pretrained, finetuned)).save(file)
    others = TaskVectors.from_state_dicts(pretrained, {"X": finetuned["A"], "B": finetuned["B"]})
    with pytest.raises(CheckpointError, match="was prepared from other models"):
        MERGE.load(file, others, others)


def test_other_files_are_refused(tmp_path):
    vectors = TaskVectors.from_state_dicts(*make_models())
    file = tmp_path / "set.safetensors"
    with pytest.raises(CheckpointError, match="is gone from"):
        MERGE.load(file, vectors, vectors)
    with pytest.raises(CheckpointError, match="can't be read"):
        MERGE.load(tmp_path, vectors, vectors)
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="is no file that a merge prepared"):
        MERGE.load(file, vectors, vectors)
    make_set(vectors).save(file)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="can't be read"):
        MERGE.load(file, vectors, vectors)


def no_blocks(header, _tensors):
    header["blocks"] = []


def blocks_that_are_a_number(header, _tensors):
    header["blocks"] = 3


def blocks_that_are_words(header, _tensors):
    header["blocks"] = ["in_proj"]


def a_block_of_no_tensor(header, _tensors):
    header["blocks"][0]["tensor"] = "another"


def a_block_beyond_its_tensor(header, _tensors):
    header["blocks"][2]["row"] += 1


def a_block_with_too_much(header, _tensors):
    header["blocks"][0]["head"] = 3


def a_block_with_words_for_numbers(header, _tensors):
    header["blocks"][0]["c"] = "six"


def a_missing_tensor(_header, tensors):
    del tensors["G.3"]


def no_lambda(_header, tensors):
    del tensors["lambda"]


def a_lambda_of_fewer_layers(_header, tensors):
    tensors["lambda"] = tensors["lambda"][1:].clone()


def a_lambda_that_is_no_number(_header, tensors):
    tensors["lambda"][0, 0] = torch.nan


def a_vector_for_a_matrix(_header, tensors):
    tensors["A.0"] = tensors["A.0"][:, 0].clone()


def a_rank_of_nothing(_header, tensors):
    tensors["A.0"] = tensors["A.0"][:, :0].clone()


def fewer_tasks(_header, tensors):
    tensors["G.1"] = tensors["G.1"][:, :, 1:].clone()


@pytest.mark.parametrize(
    "damage",
    [
        no_blocks,
        blocks_that_are_a_number,
        blocks_that_are_words,
        a_block_of_no_tensor,
        a_block_beyond_its_tensor,
        a_block_with_too_much,
        a_block_with_words_for_numbers,
        a_missing_tensor,
        no_lambda,
        a_lambda_of_fewer_layers,
        a_lambda_that_is_no_number,
        a_vector_for_a_matrix,
        a_rank_of_nothing,
        fewer_tasks,
    ],
)
def test_a_damaged_set_is_refused(tmp_path, damage):
    vectors = TaskVectors.from_state_dicts(*make_models())
    file = tmp_path / "set.safetensors"
    make_set(vectors).save(file)
    header, tensors = read_header(file), load_file(file)
    save_file(tensors, file, {"mapmerge": json.dumps(header)})
    MERGE.load(file, vectors, vectors)  # so far it is whole
    damage(header, tensors)
    save_file(tensors, file, {"mapmerge": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"is damaged: prepare Pareto Merging \(rank 2\) again"):
        MERGE.load(file, vectors, vectors)
