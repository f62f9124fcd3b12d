"""The dashboard. `streamlit run app.py` serves it; each visit runs this file again to draw a page."""

import streamlit as st

if __name__ == "__main__":
    from pages.parts.shared import shell

    shell.draw()
else:
    from pages.parts.shared import server

    app = st.App(__file__, lifespan=server.lifespan, routes=server.ROUTES, middleware=server.MIDDLEWARE)
