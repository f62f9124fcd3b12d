from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "open_clip", "timm", "torchvision", "datasets", "safetensors.torch")

DESCRIBE = f"""
import sys
from mapmerge_core.registries import FAMILIES, METRICS, READERS
from mapmerge_core.settings import fields_of
from mapmerge_core.tasks.families import find_family
for metric in METRICS:
    assert metric.help and metric.title and metric.bounds
for family in FAMILIES:
    assert family.help() and family.measurable()
    fields_of(family.Settings)
    family.check_options({{}})
for reader in READERS:
    assert reader.help and reader.examples
find_family("some.module:function").check_options({{}})
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_metrics_families_and_readers_are_described_without_large_libraries():
    ran = subprocess.run([sys.executable, "-c", DESCRIBE], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
