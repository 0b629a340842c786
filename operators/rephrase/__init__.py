"""Rephrasing the Web (WRAP, arXiv:2401.16380): pieces, styles, gates, and the rewriter that joins them."""
