"""Environments written for other libraries, as benchmarks. Each needs the extra of the same name."""

from agent_loops.adapters.gymnasium import GymnasiumBenchmark, GymnasiumEnvironment
from agent_loops.adapters.openenv import OpenEnvBenchmark, OpenEnvEnvironment, OpenEnvError

__all__ = ["GymnasiumBenchmark", "GymnasiumEnvironment", "OpenEnvBenchmark", "OpenEnvEnvironment", "OpenEnvError"]
