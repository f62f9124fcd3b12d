"""What stands beside an exported model for people and other programs: its card and its mergekit recipe."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from mapmerge_core.weights.io.checks import arithmetic_dtype, dtype_name
from mapmerge_core.weights.io.folders import is_adapter_folder

if TYPE_CHECKING:
    import torch

    from mapmerge_core.weights.export.writing import Recipe

TASK_ARITHMETIC = "Task arithmetic"
# What loads models of transformers whose class has a name that ends so, and their kind of task on hubs.
_TRANSFORMERS = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "CLIPModel": ("CLIPModel", "zero-shot-image-classification"),
}
# What loads the files beside a model that have names that begin so.
_BESIDE = {"tokenizer": ("AutoTokenizer", "tokenizer"), "preprocessor_config": ("AutoImageProcessor", "processor")}


@dataclass(frozen=True)
class Facts:
    """What a card says besides the recipe.

    Attributes:
        model: The model's file, as a reader beside the card or beside its folder finds it.
        digest: Its SHA-256.
        architecture: The open_clip configuration beside it, "" if there is none.
        config: The ``config.json`` of transformers or timm beside it, if it is a folder.
        beside: The names of the other files in that folder.
        mergekit: The mergekit recipe's file, "" if there is none.
        extra: The SHA-256 of each file of other tensors beside it, by name.
    """

    model: Path
    digest: str
    architecture: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    beside: Sequence[str] = ()
    mergekit: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


def mergekit_recipe(dtypes: Sequence[torch.dtype], recipe: Recipe) -> str:
    """Return the same merge for mergekit: task_arithmetic without normalisation is θ_pre + Σ c_n v_n.

    Args:
        dtypes: Those of the model's tensors.
        recipe: Its recipe.
    """
    floats = [dtype for dtype in dtypes if dtype.is_floating_point]
    stored = max(set(floats), key=floats.count)
    computed = arithmetic_dtype(stored)
    base = _source_path(recipe, "pretrained")
    values = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [
            {"model": _mergekit_model(recipe, name, base), "parameters": {"weight": coefficient}}
            for name, coefficient in recipe.coefficients.items()
        ],
        "parameters": {"normalize": False},
        "dtype": dtype_name(computed),
        "out_dtype": dtype_name(stored),
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.representer.add_representer(float, _represent_float)
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


def _represent_float(representer: Any, value: float) -> Any:  # noqa: ANN401 - ruamel's
    """Write a float so that YAML 1.1, which mergekit reads, doesn't take 1e-07 for text."""
    text = repr(value)
    text = text.replace("e", ".0e") if "e" in text and "." not in text else text
    return representer.represent_scalar("tag:yaml.org,2002:float", text)


def _mergekit_model(recipe: Recipe, name: str, base: str) -> str:
    """Return a model as mergekit names it: an adapter after its base and a plus sign."""
    path = _source_path(recipe, name)
    return f"{base}+{path}" if name in recipe.sources and is_adapter_folder(Path(path)) else path


def _source_path(recipe: Recipe, name: str) -> str:
    source = recipe.sources.get(name)
    return source["path"].removeprefix("hf://") if source else name


def model_card(recipe: Recipe, facts: Facts) -> str:
    """Return the model card: Markdown with the front matter that model hubs read."""
    name = facts.model.parent.name if facts.config else facts.model.stem
    kind, loading = _loading(recipe, facts)
    lines = [
        "---",
        f"tags: [mapmerge, merge{', task-arithmetic' if recipe.coefficients else ''}]",
        *kind,
        "---",
        "",
        f"# {name}",
        "",
        *_origin(recipe),
        "",
        *_metrics(recipe),
        "## Use",
        "",
        "```python",
        *loading,
        "```",
        "",
        f"The recipe is in the file's header too (key `mapmerge`){',' if facts.mergekit else '.'}",
        *([f"and beside it for mergekit (`{facts.mergekit}`)."] if facts.mergekit else []),
        f"SHA-256 of `{facts.model.name}`: `{facts.digest}`.",
        *(f"SHA-256 of `{extra}`: `{digest}`." for extra, digest in facts.extra.items()),
        "",
    ]
    return "\n".join(lines)


def _metrics(recipe: Recipe) -> list[str]:
    tasks = list(dict.fromkeys([*recipe.predicted, *recipe.measured]))
    if not tasks:
        return []
    names = {task: str(recipe.tasks.get(task, {}).get("metric", "")) for task in tasks}
    both = {task: [recipe.predicted.get(task), recipe.measured.get(task)] for task in tasks}
    shares = {
        task: recipe.tasks.get(task, {}).get("is_share", True) and all(v is None or 0 <= v <= 1 for v in values)
        for task, values in both.items()
    }
    percent = all(shares.values())
    rows = []
    for task, values in both.items():
        cells = ["" if value is None else _number(value, share=shares[task]) for value in values]
        if not percent:
            cells = [names[task], *(f"{cell} %" if cell and shares[task] else cell for cell in cells)]
        rows.append(f"| {task} | {' | '.join(cells)} |")
    header = (
        "| objective | predicted (%) | measured (%) |" if percent else "| objective | metric | predicted | measured |"
    )
    return [
        "## Metrics",
        "",
        "Predicted by surrogates fitted to validation splits; measured on test splits.",
        "",
        header,
        "| --- | ---: | ---: |" if percent else "| --- | --- | ---: | ---: |",
        *rows,
        "",
    ]


def _number(value: float, *, share: bool) -> str:
    return f"{100 * value:.1f}" if share else f"{value:.4g}"


def _origin(recipe: Recipe) -> list[str]:
    """Return the card's lines about what was merged and how."""
    coefficients = recipe.coefficients
    names = [name for name in recipe.sources if name != "pretrained"] or list(coefficients)
    models = "one fine-tuned model" if len(names) == 1 else f"{len(names)} fine-tuned models"
    about = [f"A merge of {models} by {recipe.method}"]
    if coefficients:
        about[0] += ": the pre-trained model plus"
        about.append("each model's difference to it, scaled by a coefficient.")
    else:
        about[0] += "."
    if recipe.point and not coefficients:
        about.append(f"Its point: {', '.join(f'{name} {value:.4f}' for name, value in recipe.point.items())}.")
    if recipe.settings:
        about.append(f"Settings: {_listed(recipe.settings)}.")
    about.append(f"Made with mapmerge {recipe.version} on {recipe.created}.")
    scaled = [f" {coefficients[name]:.4f} |" if coefficients else "" for name in names]
    return [
        *about,
        "",
        "| model | coefficient | source |" if coefficients else "| model | source |",
        "| --- | ---: | --- |" if coefficients else "| --- | --- |",
        f"| pre-trained |{' |' if coefficients else ''} {_source(recipe, 'pretrained')} |",
        *(f"| {name} |{c} {_source(recipe, name)} |" for name, c in zip(names, scaled, strict=True)),
    ]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {'all' if v is None else v}" for name, v in values.items())


def _source(recipe: Recipe, name: str) -> str:
    source = recipe.sources.get(name, {})
    return f"`{Path(source['path']).name}`, SHA-256 `{source['sha256']}`" if source else "not recorded"


def _loading(recipe: Recipe, facts: Facts) -> tuple[list[str], list[str]]:
    """Return the front matter's lines about the library, and a program that loads the model."""
    path = facts.model
    if facts.config:
        folder = path.parent.name
        if "model_cfg" in facts.config:
            return _loading_in_open_clip(f"local-dir:{folder}", "")
        if isinstance(facts.config.get("architecture"), str):
            return _loading_in_timm(folder, has_heads=bool(facts.extra))
        return _loading_in_transformers(facts, folder)
    if recipe.library == "timm":
        return _loading_of_classifier(recipe, facts)
    if not recipe.architecture:
        return [], [
            "from safetensors.torch import load_file",
            "",
            f'model.load_state_dict(load_file("{path.name}"))  # a model of the pre-trained architecture',
        ]
    name = Path(facts.architecture).stem if facts.architecture else recipe.architecture
    register = [f'open_clip.add_model_config("{facts.architecture}")'] if facts.architecture else []
    prepared = "".join(f", image_{key}={value!r}" for key, value in recipe.preprocessing.items())
    return _loading_in_open_clip(name, f', pretrained="{path.name}"{prepared}', *register)


def _loading_in_open_clip(name: str, weights: str, *register: str) -> tuple[list[str], list[str]]:
    return ["library_name: open_clip", "pipeline_tag: zero-shot-image-classification"], [
        "import open_clip",
        "",
        *register,
        f'model, _, preprocess = open_clip.create_model_and_transforms("{name}"{weights})',
        f'tokenizer = open_clip.get_tokenizer("{name}")',
        "model.eval()",
    ]


def _loading_of_classifier(recipe: Recipe, facts: Facts) -> tuple[list[str], list[str]]:
    heads = [f'head = load_file("{name}")  # weight and bias, for the model\'s features' for name in facts.extra]
    return ["library_name: timm", "pipeline_tag: image-classification"], [
        "import timm",
        "from safetensors.torch import load_file",
        "",
        f'model = timm.create_model("{recipe.architecture}", num_classes=0)',
        f'model.load_state_dict(load_file("{facts.model.name}"))',
        "model.eval()",
        *heads,
    ]


def _loading_in_timm(folder: str, *, has_heads: bool) -> tuple[list[str], list[str]]:
    backbone = ", num_classes=0" if has_heads else ""  # the heads lie beside it
    return ["library_name: timm", "pipeline_tag: image-classification"], [
        "import timm",
        "",
        f'model = timm.create_model("local-dir:{folder}", pretrained=True{backbone})',
        "model.eval()",
    ]


def _loading_in_transformers(facts: Facts, folder: str) -> tuple[list[str], list[str]]:
    named = str((facts.config.get("architectures") or ["AutoModel"])[0])
    loader, task = next((value for end, value in _TRANSFORMERS.items() if named.endswith(end)), (named, ""))
    beside = [
        (class_name, variable)
        for sign, (class_name, variable) in _BESIDE.items()
        if any(name.startswith(sign) for name in facts.beside)
    ]
    kind = ["library_name: transformers", *([f"pipeline_tag: {task}"] if task else [])]
    return kind, [
        f"from transformers import {', '.join([loader, *(class_name for class_name, _ in beside)])}",
        "",
        f'model = {loader}.from_pretrained("{folder}")',
        *(f'{variable} = {class_name}.from_pretrained("{folder}")' for class_name, variable in beside),
    ]
