"""Software engineering: an agent mends a repository by tool calls in a sandbox, and hidden tests decide."""
