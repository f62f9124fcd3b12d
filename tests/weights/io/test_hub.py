"""The hub is a folder here: its cache is laid out as huggingface_hub does, its answers are replaced."""

from __future__ import annotations

import importlib
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, constants, errors
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from mapmerge_core.weights.io.checkpoints import inspect, open_state_dict, read_state_dict, sha256
from mapmerge_core.weights.io.hub import Download, HubRef, fetch, is_adapter, parse_source, plan_downloads
from tests.weights.io.refusing import refused

SHA = "a" * 40
WEIGHTS = {"w": torch.arange(3.0)}
FILES = ["README.md", "config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "flax.msgpack"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache in offline mode."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache, repository, files, revision="main", sha=SHA):
    """Lays files into the cache as a download does; returns the snapshot's folder."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / sha
    for name in files:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(WEIGHTS, snapshot / name)
        elif name.endswith(".bin"):
            torch.save(WEIGHTS, snapshot / name)
        else:
            (snapshot / name).write_text("{}")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / revision).write_text(sha)
    return snapshot


@pytest.fixture
def online(cache, monkeypatch):
    """A hub with one model; what is downloaded from it is listed."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub = {"files": FILES, "asked": [], "brought": [], "error": None}

    def model_info(_self, repository, *, revision=None, files_metadata=False):
        hub["asked"].append((repository, revision))
        assert files_metadata, "sizes are left out otherwise"
        if hub["error"]:
            raise hub["error"]
        siblings = [{"rfilename": name, "size": 100 + i} for i, name in enumerate(hub["files"])]
        return ModelInfo(id=repository, sha=SHA, siblings=siblings, tags=[])

    def snapshot_download(repository, *, revision=None, allow_patterns=None, local_files_only=False):
        if local_files_only:
            return real(repository, revision=revision, allow_patterns=allow_patterns, local_files_only=True)
        names = [*filter_repo_objects(hub["files"], allow_patterns=allow_patterns)]
        hub["brought"] += names
        return str(put(cache, repository, names, revision or "main"))

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return hub


@pytest.mark.parametrize(
    ("text", "parts", "name"),
    [
        ("hf://org/model", ("org/model", None, ""), "model"),
        ("hf://org/model/", ("org/model", None, ""), "model"),
        ("hf://org/model@v1.0", ("org/model", "v1.0", ""), "model"),
        ("hf://org/model@refs/pr/3/sub/x.bin", ("org/model", "refs/pr/3", "sub/x.bin"), "x"),
        ("hf://org/model@feature%2Fx/sub", ("org/model", "feature/x", "sub"), "sub"),
        ("hf://org/m.o_d-el/a b.safetensors", ("org/m.o_d-el", None, "a b.safetensors"), "a b"),
        ("openclip://ViT-B-32/openai", ("ViT-B-32", None, "openai"), "ViT-B-32-openai"),
    ],
)
def test_references_are_taken_apart(text, parts, name):
    for given in (text, Path(text), parse_source(text)):  # pathlib makes "hf:/org/model" of it
        ref = parse_source(given)
        assert isinstance(ref, HubRef)
        assert ref.parts == parts
        assert ref.name == name
        assert str(ref) == ref.url
        assert parse_source(str(ref)) == ref


def test_paths_stay_paths():
    for text in ("models/a.pt", "/models/a", "hf/org/model", "https.pt"):
        assert parse_source(text) == Path(text)
        assert fetch(Path(text)) == Path(text)
        assert plan_downloads([parse_source(text)]) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://hub.invalid/a/b", "is a page's address: write hf://organisation/name"),
        ("hf://", "is not a model on the hub: write hf://organisation/name"),
        ("hf://gpt2", "is not a model on the hub"),
        ("hf://org/model@", "is not a model on the hub"),
        ("hf://org/model/../../x", "is not a model on the hub"),
        ("hf://org/model@..%2F..%2Fx", "is not a model on the hub"),
        ("hf://org/..", "is not a model on the hub"),
        ("hf://org/model//etc/x.safetensors", "is not a model on the hub"),
        ("hf://org/model@a%2F..%2Fb//x", "is not a model on the hub"),
        ("hf://org/mo del", "is not a model on the hub"),
        ("hf://datasets/org/name", "is a dataset"),
        ("openclip://ViT-B-32", "openclip://ARCHITECTURE/TAG"),
        ("openclip://a/b/c", "openclip://ARCHITECTURE/TAG"),
    ],
)
def test_what_is_no_reference_is_said_at_once(text, says):
    refused(says, parse_source, text)


def test_only_what_is_needed_is_downloaded(online, cache):
    online["files"] = [*FILES, "onnx/model.onnx", "vocab.txt", "spiece.model", "model.safetensors.index.json"]
    folder = fetch(parse_source("hf://org/model"))
    assert set(online["brought"]) == {
        *("config.json", "tokenizer.json", "model.safetensors", "vocab.txt", "spiece.model")
    }
    assert folder == cache / "models--org--model" / "snapshots" / SHA
    assert torch.equal(read_state_dict(parse_source("hf://org/model"))["w"], WEIGHTS["w"])
    assert online["asked"][0] == ("org/model", None)


@pytest.mark.parametrize(
    ("files", "path", "brought"),
    [
        (["pytorch_model.bin", "config.json"], "", ["pytorch_model.bin", "config.json"]),
        (["open_clip_pytorch_model.bin", "open_clip_model.safetensors"], "", ["open_clip_model.safetensors"]),
        (["finetuned.pt", "optimizer.pt", "README.md"], "", ["finetuned.pt"]),
        (
            ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "tokenizer.json"],
            "",
            ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"],
        ),
        (
            ["m.bin.index.json", "m-00001-of-00002.bin", "m-00002-of-00002.bin", "x-00001-of-00002.bin"],
            "",
            ["m.bin.index.json", "m-00001-of-00002.bin", "m-00002-of-00002.bin"],
        ),
        (["a.bin", "b.bin", "sub/a.bin", "config.json"], "/a.bin", ["a.bin", "config.json"]),
        (["a.bin", "sub/m.bin", "sub/a.json", "sub/x/b.bin"], "/sub", ["sub/m.bin", "sub/a.json"]),
        (["w[1].bin", "w1.bin"], "/w[1].bin", ["w[1].bin"]),
    ],
)
def test_the_files_of_each_kind_of_repository(online, files, path, brought):
    online["files"] = files
    local = fetch(parse_source(f"hf://org/model@v2{path}"))
    assert sorted(online["brought"]) == sorted(brought)
    assert online["asked"] == [("org/model", "v2")]
    assert local.as_posix().endswith(f"snapshots/{SHA}{path}")


def test_repositories_without_weights_and_files_that_are_missing(online):
    online["files"] = ["README.md", "a.bin", "b.bin"]
    refused("no weights, or several", fetch, HubRef("hf://org/model"))
    refused("no file or folder 'c.bin'", fetch, HubRef("hf://org/model/c.bin"))
    assert online["brought"] == []


# httpx, which goes by different names in different versions of huggingface_hub.
http = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])


def response(status):
    return http.Response(status, request=http.Request("GET", "https://hub.invalid"))


def network_error():
    return http.ConnectError("[Errno -2] Name or service not known")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: errors.RepositoryNotFoundError("x", response=response(404)), "hub has no model 'org/model'"),
        (lambda: errors.GatedRepoError("x", response=response(403)), "is gated: ask for access"),
        (lambda: errors.RevisionNotFoundError("x", response=response(404)), "has no revision 'v9'"),
        (lambda: errors.HfHubHTTPError("x", response=response(503)), "can't be reached: check the network"),
        (lambda: errors.HfHubHTTPError("Too many\nrequests", response=response(429)), "downloaded: Too many"),
        (network_error, "can't be reached: check the network"),
        (lambda: OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_hub_answers_becomes_one_sentence(online, make, says):
    online["error"] = make()
    refused(says, fetch, HubRef("hf://org/model@v9"))
    if "reached" in says:
        assert plan_downloads([HubRef("hf://org/model@v9")]) == [Download("hf://org/model@v9", None, cached=False)]
    else:
        refused(says, plan_downloads, [HubRef("hf://org/model@v9")])


def test_without_a_network_the_cache_is_used(online, cache):
    snapshot = put(cache, "org/model", ["model.safetensors"])
    online["error"] = network_error()
    assert fetch(HubRef("hf://org/model")) == snapshot
    assert plan_downloads([HubRef("hf://org/model")]) == [Download("hf://org/model", None, cached=True)]


def test_offline_mode_never_asks(cache, monkeypatch):
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("asked the hub"))
    snapshot = put(cache, "org/model", ["config.json", "model.safetensors"])
    put(cache, "org/model", ["sub/other.bin"], "v2", "b" * 40)
    assert fetch(HubRef("hf://org/model")) == snapshot
    assert fetch(HubRef(f"hf://org/model@{SHA}")) == snapshot
    assert fetch(HubRef("hf://org/model/model.safetensors")) == snapshot / "model.safetensors"
    assert fetch(HubRef("hf://org/model@v2/sub")).name == "sub"
    for missing in ("hf://org/other", "hf://org/model@v3", "hf://org/model@v2", "hf://org/model/x.bin"):
        refused("not in the local cache, and offline mode", fetch, HubRef(missing))
    assert plan_downloads([HubRef("hf://org/model"), HubRef("hf://org/other"), HubRef("hf://org/model")]) == [
        Download("hf://org/model", None, cached=True),
        Download("hf://org/other", None, cached=False),
    ]


def test_a_snapshot_without_its_weights_does_not_count(cache):
    put(cache, "org/model", ["config.json", "tokenizer.json"])
    refused("not in the local cache", fetch, HubRef("hf://org/model"))


def test_plans_say_how_much_is_missing(online, cache):
    sizes = {name: 100 + i for i, name in enumerate(FILES)}
    wanted = ["config.json", "tokenizer.json", "model.safetensors"]
    (plan,) = plan_downloads([HubRef("hf://org/model"), Path("here.pt")])
    assert plan == Download("hf://org/model", sum(sizes[name] for name in wanted), cached=False)
    put(cache, "org/model", ["config.json"])
    (plan,) = plan_downloads([HubRef("hf://org/model")])
    assert plan.n_bytes == sum(sizes[name] for name in wanted[1:])
    put(cache, "org/model", wanted)
    assert plan_downloads([HubRef("hf://org/model")]) == [Download("hf://org/model", 0, cached=True)]
    assert online["brought"] == []


def test_checkpoints_are_read_by_reference(cache):
    snapshot = put(cache, "org/model", ["model.safetensors"])
    for read in (read_state_dict, open_state_dict):
        assert torch.equal(read(HubRef("hf://org/model"))["w"], WEIGHTS["w"])
    assert inspect(HubRef("hf://org/model")).n_tensors == 1
    assert sha256(HubRef("hf://org/model")) == sha256(snapshot / "model.safetensors")


def test_adapters_are_told_from_models_once_they_are_here(cache):
    assert not is_adapter(HubRef("hf://org/adapter"))
    put(cache, "org/adapter", ["adapter_config.json", "adapter_model.safetensors"])
    put(cache, "org/model", ["model.safetensors"])
    assert is_adapter(HubRef("hf://org/adapter"))
    assert not is_adapter(HubRef("hf://org/model"))
    assert not is_adapter(HubRef("openclip://ViT-B-32/openai"))


OPENAI = "timm/vit_base_patch32_clip_224.openai"


def test_open_clips_own_models_come_from_its_cache(cache):
    ref = HubRef("openclip://ViT-B-32/openai")
    refused("not in the local cache", fetch, ref)
    assert plan_downloads([ref]) == [Download(ref.url, None, cached=False)]
    snapshot = put(cache, OPENAI, ["open_clip_model.safetensors"])
    assert fetch(ref) == snapshot / "open_clip_model.safetensors"
    assert plan_downloads([ref]) == [Download(ref.url, 0, cached=True)]


def test_open_clips_own_models_are_downloaded_by_it(online, monkeypatch, tmp_path):
    from open_clip import pretrained

    ref = HubRef("openclip://ViT-B-32/openai")
    asked = []
    monkeypatch.setattr(pretrained, "download_pretrained", lambda c: asked.append(c) or str(tmp_path / "x.bin"))
    assert fetch(ref) == tmp_path / "x.bin"
    assert asked[0]["hf_hub"].startswith(OPENAI)
    online["files"] = ["README.md", "open_clip_model.safetensors"]
    assert plan_downloads([ref]) == [Download(ref.url, 101, cached=False)]
    online["error"] = network_error()
    assert plan_downloads([ref]) == [Download(ref.url, None, cached=False)]

    def fail(_):
        raise FileNotFoundError("Failed to download file")

    monkeypatch.setattr(pretrained, "download_pretrained", fail)
    refused("can't be downloaded", fetch, ref)


def test_unknown_open_clip_models_name_the_known_ones():
    refused("open_clip knows ViT-B-32 with openai, ", fetch, HubRef("openclip://ViT-B-32/none"))
    refused("no pre-trained weights for 'None-1'", fetch, HubRef("openclip://None-1/openai"))
