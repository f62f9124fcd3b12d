"""Files are written by torch itself, or instruction by instruction where torch would never write them."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from functools import partial
from types import ModuleType
from typing import ClassVar

import open_clip
import pytest
import torch
from timm.layers import PatchEmbed
from torch import nn
from torchvision.transforms import Compose, InterpolationMode, Resize

from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.pickles import map_pickle, open_pickle
from tests.tiny import ARCHITECTURE

OLD = {"_use_new_zipfile_serialization": False}
FORMATS = pytest.mark.parametrize("options", [{}, OLD], ids=["zip", "old format"])


def lazily(path):
    return {name: tensor.read() for name, tensor in open_pickle(path).items()}


READERS = pytest.mark.parametrize("read", [map_pickle, lazily])


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


def refused(path, says):
    """Both ways of reading end in the same sentence."""
    texts = set()
    for read in (map_pickle, open_pickle):
        with pytest.raises(CheckpointError, match=says) as error:
            read(path)
        texts.add(str(error.value))
    (text,) = texts
    assert str(path) in text
    assert text.endswith(".")
    assert not re.search(r"\n|Traceback|Error\b", text)


@FORMATS
@READERS
def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path, options, read):
    matrix = torch.randn(6, 5)
    state = {
        "matrix": matrix,
        "transposed": matrix.T,
        "column": matrix[1:, 3],
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "counter": torch.tensor(7),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0, 4),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    torch.save(state, tmp_path / "m.pt", **options)
    assert_same(read(tmp_path / "m.pt"), state)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn])
def test_newer_dtypes_come_back(tmp_path, dtype):
    tensor = torch.arange(4).to(torch.float32).to(dtype)
    torch.save({"w": tensor}, tmp_path / "m.pt")
    (found,) = lazily(tmp_path / "m.pt").values()
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path, protocol):
    state = OrderedDict(a=torch.ones(2), b=torch.zeros(3))
    torch.save(state, tmp_path / "m.pt", pickle_protocol=protocol)
    assert_same(map_pickle(tmp_path / "m.pt"), state)


@FORMATS
def test_tied_tensors_stay_one_tensor(tmp_path, options):
    tensor = torch.randn(4, 4)
    torch.save({"a": tensor, "b": tensor, "c": tensor[1:]}, tmp_path / "m.pt", **options)
    found = map_pickle(tmp_path / "m.pt")
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert torch.equal(found["c"], tensor[1:])


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_training_checkpoints_are_unwrapped(tmp_path, key):
    state = {"a": torch.ones(2)}
    options = {"args": Options(lr=0.1), "epoch": 3, "optimizer": {"state": {0: {"m": torch.zeros(2)}}}}
    torch.save({**options, key: state}, tmp_path / "m.pt")
    assert_same(map_pickle(tmp_path / "m.pt"), state)
    torch.save({key: nn.Linear(2, 1)}, tmp_path / "module.pt")
    assert list(map_pickle(tmp_path / "module.pt")) == ["weight", "bias"]


class Options:
    def __init__(self, **values):
        self.__dict__.update(values)


@pytest.fixture
def image_encoder():
    """A file as those of "Editing Models with Task Arithmetic": an open_clip model in a class of its own."""
    gone = ModuleType("gone_modeling")
    sys.modules["gone_modeling"] = gone

    class ImageEncoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = open_clip.CLIP(**ARCHITECTURE)
            self.train_preprocess = Compose([Resize(16, InterpolationMode.BICUBIC)])
            self.val_preprocess = open_clip.image_transform(16, is_train=False)
            self.norm = partial(nn.LayerNorm, eps=1e-6)
            self.cache_dir = None
            self.patches = PatchEmbed(8, 4, embed_dim=2)
            self.device = torch.device("cpu")
            self.register_buffer("kept", torch.ones(2))
            self.register_buffer("passing", torch.ones(2), persistent=False)
            self.register_parameter("none", None)
            del self.model.transformer

    ImageEncoder.__module__, ImageEncoder.__qualname__ = "gone_modeling", "ImageEncoder"
    gone.ImageEncoder = ImageEncoder
    yield ImageEncoder()
    sys.modules.pop("gone_modeling", None)


@FORMATS
@READERS
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_module_whose_class_is_gone_gives_its_state_dict(tmp_path, image_encoder, options, read):
    torch.save(image_encoder, tmp_path / "finetuned.pt", **options)
    del sys.modules["gone_modeling"]
    with pytest.raises(ModuleNotFoundError):
        torch.load(tmp_path / "finetuned.pt", weights_only=False)
    expected = image_encoder.state_dict()
    assert "passing" not in expected
    assert_same(read(tmp_path / "finetuned.pt"), expected)


def test_shared_submodules_and_lists_of_modules(tmp_path):
    shared = nn.Linear(2, 2)
    module = nn.Sequential(nn.ModuleList([shared, nn.BatchNorm1d(2)]), nn.ModuleDict({"again": shared}))
    torch.save(module, tmp_path / "m.pt")
    found = map_pickle(tmp_path / "m.pt")
    assert_same(found, module.state_dict())
    assert found["0.0.weight"].data_ptr() == found["1.again.weight"].data_ptr()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_program_says_what_to_do(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 1), torch.zeros(1, 2)), tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "TorchScript program.*state_dict")


def test_a_module_without_tensors_and_other_things_are_named(tmp_path):
    torch.save(nn.ReLU(), tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "module without tensors")
    torch.save(Options(a=1), tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "holds a Options, not a state dict")


# What no honest file holds. Each pickle would make the file `canary` if its calls were executed.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def hostile(canary) -> dict[str, bytes]:
    command, code = text(f"touch {canary}"), text(f"open({str(canary)!r}, 'w').close()")
    system, getattr_, thing = b"cos\nsystem\n", b"cbuiltins\ngetattr\n", b"cevil\nThing\n)\x81"
    bodies = {
        "os.system": system + command + b"\x85R",
        "stack_global": text("os") + text("system") + b"\x93" + command + b"\x85R",
        "eval": b"cbuiltins\neval\n" + code + b"\x85R",
        "nested": getattr_ + b"c__builtin__\n__import__\n" + text("os") + b"\x85R",
        "nested in a call": getattr_ + b"cos\nsys\n" + text("exit") + b"\x86R" + command + b"\x85R",
        "memo": system + b"q\x01" + command + b"\x85q\x020h\x01h\x02R",
        "as a tensor": b"}" + text("w") + system + command + b"\x85Rs",
        "instance": b"(" + command + b"ios\nsystem\n",
        "object": b"(" + system + command + b"o",
        "newobj_ex": system + command + b"\x85}\x92",
        "extension": b"\x82\x01",
        "extension of 4 bytes": b"\x84\x01\x00\x00\x00",
        "a stand-in is called": thing + command + b"\x85R",
        "a method of a stand-in": getattr_ + thing + text("run") + b"\x86R",
        "an allowed name elsewhere": b"cevil\n_rebuild_tensor_v2\n" + command + b"\x85R",
        "through a rebuilder": b"ctorch._tensor\n_rebuild_from_type_v2\n("
        + (system + b"ctorch\nTensor\n" + command + b"\x85}tR"),
        "torch.load in a file": b"ctorch.storage\n_load_from_bytes\nC\x00\x85R",
        "a class made by type": b"cbuiltins\ntype\n" + text("T") + b")}\x87R",
        "next buffer": b"\x97",
        "persistent id as text": b"Pevil\n",
    }
    return {name: b"\x80\x05" + body + b"." for name, body in bodies.items()}


def zipped(path, pickled, records=(), **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/byteorder", b"little")
        for name, content in records:
            archive.writestr(f"m/data/{name}", content)


HOSTILE = sorted(hostile("x"))


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("wrapped", [True, False], ids=["zip", "bare"])
def test_nothing_that_a_file_asks_for_is_executed(tmp_path, kind, wrapped):
    canary, path = tmp_path / "canary", tmp_path / "m.pt"
    pickled = hostile(canary)[kind]
    zipped(path, pickled) if wrapped else path.write_bytes(pickled)
    refused(path, "never executed")
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["os.system", "stack_global", "eval", "memo", "as a tensor", "instance", "object"])
def test_these_pickles_are_really_hostile(tmp_path, kind):
    pickle.loads(hostile(tmp_path / "canary")[kind])
    assert (tmp_path / "canary").exists()


def test_state_is_never_handed_to_a_class(tmp_path):
    """A class that exists, and that pickle itself would call to restore its state."""
    path = tmp_path / "m.pt"
    Trap.sprung.clear()
    torch.save({"state_dict": {"w": torch.ones(2)}, "trap": Trap()}, path)
    assert list(map_pickle(path)) == ["w"]
    assert Trap.sprung == []
    torch.load(path, weights_only=False)
    assert Trap.sprung == ["__new__", "__setstate__"]


class Trap:
    sprung: ClassVar[list[str]] = []

    def __new__(cls):
        cls.sprung.append("__new__")
        return super().__new__(cls)

    def __getstate__(self):
        self.sprung.clear()
        return {"a": 1}

    def __setstate__(self, state):
        self.sprung.append("__setstate__")


STORAGE = "ctorch\nFloatStorage\n"


def tensor_pickle(numel="K\x04", offset="K\x00", shape="K\x04\x85", stride="K\x01\x85", key="0", kind=STORAGE):
    """{"w": a tensor}, with parts as pickle instructions."""
    identity = b"(" + text("storage") + kind.encode() + text(key) + text("cpu") + numel.encode("latin1") + b"tQ"
    arguments = identity + b"".join(part.encode("latin1") for part in (offset, shape, stride)) + b"\x89}t"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"Rs."


RECORD = [("0", struct.pack("<4f", 1, 2, 3, 4))]


def test_a_pickle_written_by_hand_is_read(tmp_path):
    zipped(tmp_path / "m.pt", tensor_pickle(), RECORD)
    for read in (map_pickle, lazily):
        assert read(tmp_path / "m.pt")["w"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "parts",
    [
        {"numel": "K\x05"},  # more than the record holds
        {"numel": "J\xff\xff\xff\xff"},  # -1
        {"numel": "\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01"},  # 2 ** 64
        {"numel": "G@\x10\x00\x00\x00\x00\x00\x00"},  # 4.0
        {"offset": "K\x01"},
        {"offset": "J\xff\xff\xff\xff"},
        {"shape": "K\x05\x85"},
        {"shape": "J\xff\xff\xff\xff\x85"},
        {"shape": "K\x04K\x04\x86"},  # more dimensions than strides
        {"shape": "J\xff\xff\xff\x7f\x85", "stride": "K\x00\x85"},  # one number 2 ** 31 times
        {"shape": "K\x02\x85", "stride": "K\x04\x85"},
        {"shape": "K\x02\x85", "stride": "J\xff\xff\xff\xff\x85"},
        {"key": "1"},
        {"key": "../0"},
        {"key": "/etc/passwd"},
    ],
)
def test_tensors_outside_of_their_records_are_damage(tmp_path, parts):
    zipped(tmp_path / "m.pt", tensor_pickle(**parts), RECORD)
    refused(tmp_path / "m.pt", "is damaged or not a PyTorch checkpoint")


def test_unknown_storages_are_refused(tmp_path):
    zipped(tmp_path / "m.pt", tensor_pickle(kind="cos\nsystem\n"), RECORD)
    refused(tmp_path / "m.pt", "never executed")


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02h\x07.",  # nothing was remembered there
        b"\x80\x02t.",  # no mark
        b"\x80\x02}R.",
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"\x80\x02]}K\x01K\x02se}b.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",  # more bytes than there are
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"abc.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02" + b"(" * 20_000,
        b"\x80\x02" + b"K\x01\x85" + b"\x85" * 20_000 + b"}K\x01s.",
        b"\x80\x02}" + b"K\x01\x85" + b"\x85q\x000h\x00h\x00\x86q\x00" * 100 + b"K\x01s.",  # slow to hash
    ],
)
@pytest.mark.parametrize("wrapped", [True, False], ids=["zip", "bare"])
def test_malformed_pickles_are_damage(tmp_path, pickled, wrapped):
    zipped(tmp_path / "m.pt", pickled) if wrapped else (tmp_path / "m.pt").write_bytes(pickled)
    refused(tmp_path / "m.pt", "is damaged or|not a state dict")


@FORMATS
def test_a_file_cut_anywhere_ends_in_one_sentence(tmp_path, options):
    content = io.BytesIO()
    torch.save({"w": torch.randn(40), "v": torch.randn(3)}, content, **options)
    whole = content.getvalue()
    for length in range(0, len(whole) - 1, 37):
        (tmp_path / "m.pt").write_bytes(whole[:length])
        refused(tmp_path / "m.pt", "damaged")


def test_compressed_records_are_not_unfolded(tmp_path):
    bomb = bytes(100 << 20)
    zipped(tmp_path / "m.pt", tensor_pickle(numel="J\x00\x00\x90\x01"), [("0", bomb)], compression=8)
    assert (tmp_path / "m.pt").stat().st_size < 1 << 20
    refused(tmp_path / "m.pt", "is damaged or not a PyTorch checkpoint")


def test_a_record_that_says_it_is_larger_than_the_file(tmp_path):
    path = tmp_path / "m.pt"
    zipped(path, tensor_pickle(), RECORD)
    content = path.read_bytes()
    at = content.rindex(b"m/data/0") - 46  # its entry in the archive's directory
    sizes = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(content[: at + 20] + sizes + content[at + 28 :])
    refused(path, "is damaged or not a PyTorch checkpoint")


def test_modules_without_end_are_damage(tmp_path):
    """A module inside itself, and one whose submodules double sixty times."""
    module = nn.Sequential(nn.Linear(2, 2))
    module._modules["again"] = module
    torch.save(module, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "is damaged")
    module = nn.Module()
    for _ in range(60):
        outer = nn.Module()
        outer._modules.update(a=module, b=module)
        module = outer
    torch.save(module, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "is damaged")
    module = nn.Module()
    shared = nn.Sequential(*(nn.Linear(1, 1) for _ in range(200)))
    module._modules.update({str(i): shared for i in range(10_000)})
    torch.save(module, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "is damaged")


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(3).to_sparse(), torch.tensor([1 + 1j]).conj(), torch.empty(2, device="meta")],
    ids=["sparse", "conjugated", "meta"],
)
def test_tensors_without_plain_numbers_are_refused(tmp_path, tensor):
    torch.save({"w": tensor}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "never executed")


def test_dtypes_that_no_bytes_can_be_are_refused(tmp_path):
    """Quantized tensors over plain bytes end the process."""
    typed = tensor_pickle(kind="ctorch.storage\nUntypedStorage\n", numel="K\x10")
    typed = typed.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3").replace(b"\x89}t", b"\x89}%st")
    for name in ("qint8", "bits8"):
        zipped(tmp_path / "m.pt", typed.replace(b"%s", f"ctorch\n{name}\n".encode()), RECORD)
        refused(tmp_path / "m.pt", f"never executed here .it stores {name} data")
    zipped(tmp_path / "m.pt", typed.replace(b"%s", b"ctorch\nfloat32\n"), RECORD)
    assert lazily(tmp_path / "m.pt")["w"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "again",
    [
        b"ccollections\nOrderedDict\nh\x00\x85R0",  # a dictionary of the same thousands of pairs
        b"ca\nb\n)\x81h\x01b0",  # an object with the same thousands of attributes
        b"}h\x02K\x01s0",  # the same long key
    ],
)
def test_what_is_handed_over_without_end_is_refused(tmp_path, again):
    n = 10_000
    pairs = b"(" + b"K\x00K\x00\x86" * n + b"lq\x000"
    attributes = b"}(" + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(n)) + b"uq\x010"
    key = b"(" + b"K\x00" * n + b"tq\x020"
    zipped(tmp_path / "m.pt", b"\x80\x02" + pairs + attributes + key + again * 20_000 + b"N.")
    refused(tmp_path / "m.pt", "it never ends|is damaged or not a PyTorch checkpoint")


def test_a_file_that_is_not_there_any_more(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(1000)}, path)
    tensor = open_pickle(path)["w"]
    os.truncate(path, 300)
    with pytest.raises(CheckpointError, match="shortened"):
        tensor.read()
    path.unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        tensor.read()
