"""What `aem doctor` looks at before a run: a module a topic, each with small checks that return findings."""
