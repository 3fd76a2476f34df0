"""What studies/mechanism.py computes, one file per topic: numbers in, table rows out; nothing here writes or prints."""
