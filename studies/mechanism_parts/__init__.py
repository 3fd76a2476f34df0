"""What studies/mechanism.py computes, a topic a file: numbers in, rows of tables out; nothing here writes or prints."""
