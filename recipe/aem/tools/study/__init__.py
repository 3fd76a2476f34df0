"""A study: methods × seeds × benchmarks, trained cell by cell, ending in one table and one figure (docs/study.md)."""
