"""Software engineering: an agent fixes a repository through tool calls in a sandbox, and hidden tests decide."""
