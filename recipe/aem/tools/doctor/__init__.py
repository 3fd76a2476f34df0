"""The checks of `aem doctor`: one module per topic, each with small checks that return findings."""
