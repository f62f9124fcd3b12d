"""What all pages share: the frame around them, the study in view, and errors as one sentence."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.palette import DARK, LIGHT, Palette
from mapmerge_core.errors import MapMergeError, RuleError
from mapmerge_core.files import bundled
from pages.parts.shared import server, state

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Study

ASSETS = bundled("assets")

PLOT = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}
"""How Plotly's tool bar looks."""

OPENED = "as_opened"
"""Where a page keeps, in the session, what it was opened with; gone once another page is in view."""

NEXT_IMPORTS = ("mapmerge_core.studies.jobs.jobs", "open_clip")
"""What other pages and jobs need and the first page doesn't, in the order in which it is wanted."""

PAGES = (
    ("pages/studies.py", "Studies", ":material/folder_open:"),
    ("pages/models.py", "Models", ":material/layers:"),
    ("pages/evaluate.py", "Evaluate", ":material/monitoring:"),
    ("pages/trade_offs.py", "Trade-offs", ":material/balance:"),
    ("pages/compare.py", "Compare", ":material/leaderboard:"),
    ("pages/export.py", "Export", ":material/download:"),
)


def draw() -> None:
    """Draw the frame and the page that the address names."""
    pages = [
        st.Page(path, title=title, icon=icon, default=number == 0) for number, (path, title, icon) in enumerate(PAGES)
    ]
    page = st.navigation(pages, position="top")
    st.set_page_config(page_title=f"{page.title} · mapmerge", page_icon=str(ASSETS / "icon.svg"), layout="wide")
    st.logo(str(ASSETS / f"logo-{theme()}.svg"), size="large", link=None)
    st.html(ASSETS / "dashboard.css")
    with errors_shown():
        page.run()
    warm_up()


@st.cache_resource(show_spinner=False)
def warm_up() -> threading.Thread:
    """Import what other pages and jobs need in the background, once per server, after the first page."""

    def import_packages() -> None:
        for name in NEXT_IMPORTS:
            import_module(name)
        server.freeze()

    thread = threading.Thread(target=import_packages, name="warm-up", daemon=True)
    thread.start()
    return thread


def theme() -> str:
    """Return the browser's theme, "light" or "dark"."""
    return st.context.theme.type or "light"


def palette() -> Palette:
    """Return the chart colours that suit the browser's theme."""
    return DARK if theme() == "dark" else LIGHT


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show an error that a person can cause as its one sentence."""
    try:
        yield
    except MapMergeError as error:
        show_error(error)


def show_error(error: MapMergeError) -> None:
    """Show an error's one sentence; a rule's also points at the word."""
    st.error(plain(str(error)), icon=":material/error:")
    if isinstance(error, RuleError):
        st.code(error.pointer, language=None)


def heading(title: str, lead: str) -> None:
    """Draw a page's title with one sentence under it."""
    if st.session_state.get("page_in_view") != title:
        st.session_state["page_in_view"] = title
        st.session_state.pop(OPENED, None)
    st.title(title, anchor=False)
    st.html(f'<p class="lead">{lead}</p>')


def study_heading(title: str, lead: str) -> Study:
    """Draw a page's title with the study selector beside it.

    The study is kept in the address (``?study=3``) and, between pages, in the session. Stops the page with an
    invitation where there are no studies yet.
    """
    studies = state.store().studies.all()
    left, right = st.columns([3, 1.3], vertical_alignment="bottom")
    with left:
        heading(title, lead)
    if not studies:
        empty(
            "No studies yet",
            "A study holds a pre-trained model, its fine-tuned models and everything measured on them. "
            "Run a demo with one click, or start from your own models.",
            ("pages/studies.py", "Go to Studies", ":material/folder_open:"),
        )
        st.stop()
    by_id = {study.id: study for study in studies}
    if "study" in st.query_params and _asked_study() not in by_id:
        st.warning(
            f"There is no study {plain(st.query_params['study'])}: it may have been deleted.",
            icon=":material/search_off:",
        )
    wanted = next((number for number in (_asked_study(), st.session_state.get("study_id")) if number in by_id), None)
    st.session_state["study"] = wanted or studies[0].id
    with right:
        st.selectbox(
            "Study",
            list(by_id),
            key="study",
            format_func=lambda number: by_id[number].name,
            on_change=_study_chosen,
            filter_mode="contains",
        )
    chosen: int = st.session_state["study"]
    st.session_state["study_id"] = chosen
    st.query_params["study"] = str(chosen)
    return by_id[chosen]


def _asked_study() -> int | None:
    text = st.query_params.get("study", "")
    return int(text) if text.isdecimal() else None


def _study_chosen() -> None:
    st.session_state["study_id"] = st.session_state["study"]
    st.query_params["study"] = str(st.session_state["study"])


def go(page: str, study_id: int, **query: str) -> None:
    """Go to a page with a study in view."""
    st.session_state["study_id"] = study_id
    st.switch_page(page, query_params={"study": str(study_id), **query})


def empty(title: str, text: str, link: tuple[str, str, str] | None = None, study_id: int | None = None) -> None:
    """Draw an empty state: what is missing, and where to go for it."""
    with st.container(border=True, key=f"empty_{title.lower().replace(' ', '_')}", horizontal_alignment="center"):
        st.subheader(title, anchor=False, text_alignment="center")
        st.markdown(text, text_alignment="center")
        if link:
            page, label, icon = link
            query = {"study": str(study_id)} if study_id is not None else None
            st.page_link(page, label=label, icon=icon, query_params=query)


def plain(text: str) -> str:
    """Return a person's own text with Markdown's signs escaped, so that it is shown as it was typed."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~:$-])", r"\\\1", text)
