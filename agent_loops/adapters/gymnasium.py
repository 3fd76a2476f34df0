"""A `gymnasium.Env` whose observations and actions are text, as a benchmark."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from agent_loops.adapters.common import Facts, SeedTasks, refuse
from agent_loops.environment import Observation, Step

if TYPE_CHECKING:
    import gymnasium


class GymnasiumEnvironment:
    """Plays one episode at a time in a `gymnasium.Env` of its own, which is made at the first reset.

    An action outside the action space (its length, its characters) never reaches the environment: the agent is told
    why, and sees the last observation again.
    """

    thread_safe: ClassVar[bool] = False

    def __init__(self, make: Callable[[], gymnasium.Env], facts: Facts) -> None:
        self._make = make
        self._facts = facts
        self._env: gymnasium.Env | None = None
        self._seen: Observation | None = None

    def reset(self, task: Mapping[str, Any]) -> Observation:
        """Starts the episode of this seed and these options.

        Raises:
            TypeError: the observation is not text.
        """
        self._seen = None
        if self._env is None:
            self._env = self._make()
        text, told = self._env.reset(seed=int(task["seed"]), options=task.get("options"))
        self._seen = self._facts.of_observation(_text(text), told)
        return self._seen

    def step(self, action: str) -> Step:
        """Plays one action.

        Raises:
            RuntimeError: no episode was started.
            TypeError: the observation is not text.
            KeyError: the episode ended, and nothing says whether it is won.
        """
        if self._env is None or self._seen is None:
            raise RuntimeError("step() before reset(): no episode is being played")
        if not self._env.action_space.contains(action):
            return refuse(self._seen, f"Not an action: {_reason(action, self._env.action_space)}.")
        text, reward, terminated, truncated, told = self._env.step(action)
        reward, terminated, truncated = float(reward), bool(terminated), bool(truncated)
        info = self._facts.of_step(told, reward, terminated or truncated)
        self._seen = self._facts.of_observation(_text(text), told)
        return Step(self._seen, reward, terminated, truncated, info)

    def close(self) -> None:
        """Closes the environment."""
        env, self._env, self._seen = self._env, None, None
        if env is not None:
            env.close()


class _ThreadSafe(GymnasiumEnvironment):
    thread_safe: ClassVar[bool] = True


class GymnasiumBenchmark:
    """A Gymnasium environment as a benchmark. A task is a seed; the splits are disjoint ranges of seeds.

    `info["won"]` says whether the task is solved; where it has another name, or the environment tells only a reward,
    `keys` or `winning_reward` says so. `info` may also hold `score`, `instruction`, `body`, `kind` and `actions`.

    Args:
        env_id: a registered environment, as `gymnasium.make` takes it; `module:Name-v0` imports the module first.
        factory: instead of `env_id`, what makes the environment: `module:function` or `module:Class`.
        env_kwargs: arguments for either.
        train, validation: how many tasks the splits have.
        options: what `reset` is given as `options`, in every task.
        keys: the environment's own names in `info`, e.g. `{won: is_success}`.
        winning_reward: the last step's reward from which on an episode is won, where `info` does not say.
        thread_safe: whether several of these environments may run in different threads at once.
        name: the benchmark's name in the metrics; by default `env_id`, or the factory's last part.

    Raises:
        ImportError: gymnasium is not installed.
        ValueError: a setting does not fit.
        TypeError: a space of the environment is not `gymnasium.spaces.Text`.
    """

    def __init__(
        self,
        env_id: str | None = None,
        factory: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        train: int = 1000,
        validation: int = 100,
        options: Mapping[str, Any] | None = None,
        keys: Mapping[str, str] | None = None,
        winning_reward: float | None = None,
        thread_safe: bool = False,
        name: str | None = None,
    ) -> None:
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError("gymnasium is not installed: pip install 'verl-aem[gymnasium]'") from error
        if (env_id is None) == (factory is None):
            raise ValueError(f"env_id={env_id!r}, factory={factory!r}: give one of them")
        arguments = dict(env_kwargs or {})
        self._make: Callable[[], gymnasium.Env]
        if env_id is not None:
            # the checker would warn anew in every episode; `agent_loops.check` is ours
            self._make = lambda: gymnasium.make(env_id, disable_env_checker=True, **arguments)
        else:
            make = pkgutil.resolve_name(str(factory))
            self._make = lambda: make(**arguments)
        self._facts = Facts(keys, winning_reward)
        self._tasks = SeedTasks(train, validation, options)
        self._class = _ThreadSafe if thread_safe else GymnasiumEnvironment
        self._name = name or env_id or str(factory).rpartition(":")[2]
        env = self._make()
        try:
            for role, space in (("observation", env.observation_space), ("action", env.action_space)):
                if not isinstance(space, gymnasium.spaces.Text):
                    raise TypeError(
                        f"the {role} space of {self._name} is {space}: expected gymnasium.spaces.Text. Wrap the "
                        f"environment, e.g. in gymnasium.wrappers.Transform{role.capitalize()} with a Text space"
                    )
        finally:
            env.close()

    @property
    def name(self) -> str:
        return self._name

    @property
    def task_set(self) -> SeedTasks:
        return self._tasks

    def make(self) -> GymnasiumEnvironment:
        """Returns an environment that is not yet open: its first reset may take a while, and runs in a thread."""
        return self._class(self._make, self._facts)


def _text(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"the observation is a {type(observation).__name__}: expected a string")
    return observation


def _reason(action: str, space: Any) -> str:
    if not space.min_length <= len(action) <= space.max_length:
        return f"it has {len(action)} characters, expected {space.min_length} to {space.max_length}"
    strange = sorted(set(action) - space.character_set)
    return f"these characters cannot be used: {' '.join(map(repr, strange[:10]))}"
