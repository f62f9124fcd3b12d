"""A language study end to end: small models of Debian's translated manual pages, trained by a script."""
