"""A report on one or several runs: one self-contained HTML page, a picture, and every number as JSON."""
