"""Sample images and texts as HTML, labelled and unblurred."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import streamlit as st
from PIL import Image

from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import preview, text_preview

if TYPE_CHECKING:
    import numpy as np

SIDE = 192
"""Pixels of a large image's longer side once it is made smaller: it is drawn at a third of that."""
LEAST = 96
"""Pixels of a small image's height once it is made larger."""


def samples(data: DataSource | Path, count: int) -> list[tuple[str, str]]:
    """``count`` validation images of a dataset as (data URI, class name), of as many classes as possible.

    Raises:
        DatasetError: where the dataset is missing or damaged.
    """
    source = data if isinstance(data, DataSource) else DataSource(path=data)
    return _samples(json.dumps(source.to_dict()), count, changed(source))


def texts(source: DataSource, count: int) -> list[str]:
    """The beginnings of ``count`` validation texts of a dataset.

    Raises:
        DatasetError: where the dataset is missing or damaged.
    """
    return _texts(json.dumps(source.to_dict()), count, changed(source))


def changed(source: DataSource) -> int:
    """When a dataset's file or folder last changed; 0 for addresses and what isn't there."""
    try:
        return source.path.stat().st_mtime_ns if isinstance(source.path, Path) else 0
    except OSError:
        return 0


@st.cache_data(show_spinner=False, max_entries=128)
def _samples(source: str, count: int, changed: int) -> list[tuple[str, str]]:  # noqa: ARG001 - `changed` is the cache's key
    images = preview(DataSource.from_dict(json.loads(source)), count)
    return [(_data_uri(image), name) for image, name in images]


@st.cache_data(show_spinner=False, max_entries=128)
def _texts(source: str, count: int, changed: int) -> list[str]:  # noqa: ARG001 - `changed` is the cache's key
    return text_preview(DataSource.from_dict(json.loads(source)), count)


def _data_uri(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    # Whole-number enlargement keeps small images crisp on dense screens.
    factor = max(1, LEAST // picture.height)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
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


def quotes(passages: Sequence[str]) -> None:
    """Draw texts under each other, each cut to a few lines."""
    cells = "".join(f"<p>{html.escape(passage)}</p>" for passage in passages)
    st.html(f'<div class="quotes">{cells}</div>')


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
