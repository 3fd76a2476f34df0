"""A small agent that learns within minutes on two cores: its model, its warm start, and the demo's results."""
