"""Sample images as HTML, labelled and unblurred."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import streamlit as st
from PIL import Image

from mapmerge_core.charts.models import one_of_each
from mapmerge_core.tasks.datasets import inspect_dataset, load_split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np


def samples(data: Path, count: int) -> list[tuple[str, str]]:
    """``count`` validation images of a dataset as (data URI, class name), of as many classes as possible.

    Raises:
        DatasetError: where the dataset is missing or damaged.
    """
    return _samples(data, count, data.stat().st_mtime_ns if data.is_file() else 0)


@st.cache_data(show_spinner=False, max_entries=64)
def _samples(data: Path, count: int, changed: int) -> list[tuple[str, str]]:  # noqa: ARG001 - `changed` is the cache's key
    images, labels = load_split(data, "val")
    names = inspect_dataset(data).class_names
    return [(_data_uri(images[row]), names[labels[row]]) for row in one_of_each(labels, count)]


def _data_uri(image: np.ndarray) -> str:
    file = io.BytesIO()
    # Whole-number enlargement keeps small images crisp on dense screens.
    factor = max(1, 96 // image.shape[0])
    picture = Image.fromarray(image).resize(
        (image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST
    )
    picture.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def strip(pictures: Sequence[tuple[str, str]], look: Literal["labelled", "even"]) -> None:
    """Draw (data URI, caption) pairs: "labelled" in a row with captions, "even" eight a row with tooltips."""
    figures = "".join(
        f'<figure><img src="{uri}" alt="{html.escape(caption)}" title="{html.escape(caption)}">'
        + (f"<figcaption>{html.escape(caption)}</figcaption>" if look == "labelled" else "")
        + "</figure>"
        for uri, caption in pictures
    )
    st.html(f'<div class="strip {look}">{figures}</div>')


def facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Draw (label, value) pairs in a row."""
    cells = "".join(f"<div><span>{html.escape(a)}</span><b>{html.escape(b)}</b></div>" for a, b in pairs)
    st.html(f'<div class="facts">{cells}</div>')


@dataclass(frozen=True)
class Tile:
    """A figure with its label, one line that stands out, and lines in small print."""

    label: str
    value: str
    strong: str = ""
    notes: tuple[str, ...] = ()


def tiles(cells: Sequence[Tile], look: Literal["pick", "plain"]) -> None:
    """Draw equally wide tiles."""
    drawn = "".join(
        f'<div class="tile"><h4>{html.escape(cell.label)}</h4><b>{html.escape(cell.value)}</b>'
        + (f'<p class="measured">{html.escape(cell.strong)}</p>' if cell.strong else "")
        + "".join(f"<p>{html.escape(note)}</p>" for note in cell.notes)
        + "</div>"
        for cell in cells
    )
    st.html(f'<div class="tiles {look}">{drawn}</div>')


def busy(text: str) -> None:
    """Say what is going on, with a ring that turns."""
    st.html(f'<p class="busy">{html.escape(text)}</p>')
