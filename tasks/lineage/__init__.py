"""Where a row came from, what was decided of it, and what was made of it: from records and data alone."""
