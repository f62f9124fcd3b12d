"""The models of the families beside this folder, which need torch and other large libraries."""
