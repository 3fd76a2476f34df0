"""Environments written for other libraries, as benchmarks. Each needs the extra that is called like it."""

from agent_loops.adapters.gymnasium import GymnasiumBenchmark, GymnasiumEnvironment
from agent_loops.adapters.openenv import OpenEnvBenchmark, OpenEnvEnvironment, OpenEnvError

__all__ = ["GymnasiumBenchmark", "GymnasiumEnvironment", "OpenEnvBenchmark", "OpenEnvEnvironment", "OpenEnvError"]
