"""A task that a model of a few hundred weights learns in seconds, for the tests of whole runs."""

from __future__ import annotations

import random

from agent_loops.environment import Observation, Step
from recipe.aem.tools.demo.cloning import Demonstration, clone
from recipe.aem.tools.demo.tiny_model import build_model, build_tokenizer
from recipe.aem.tools.hydra_config import compose

PROMPT = "{{ instruction }}{% for past in history %} {{ past.action }}{% endfor %} {{ observation }}"


class Echo:
    """Says a word three times; whoever repeats it each time has won."""

    thread_safe = True
    words = ("left", "right")

    def reset(self, task):
        self.word, self.turns, self.right = self.words[task["number"] % 2], 0, 0
        return self._observe()

    def step(self, action):
        self.turns += 1
        self.right += action == self.word
        ended = self.turns == 3
        return Step(self._observe(), float(ended), ended, False, {"won": self.right == 3})

    def close(self):
        pass

    def _observe(self):
        return Observation(f"say {self.word}", list(self.words), {"instruction": "repeat", "page": f"turn{self.turns}"})


class EchoBenchmark:
    name = "echo"

    def make(self):
        return Echo()


def make_tokenizer():
    texts = ["repeat say left right", "<action>left</action>", "<action>right</action>", "user assistant"]
    return build_tokenizer(texts, Echo.words, markup=("<action>", "</action>"))


def cloned_weights(tokenizer):
    """Of a model that repeats the word most of the time and wins a third of its trajectories."""
    model, chance = build_model(tokenizer, seed=0, hidden=16, layers=1, heads=2), random.Random(0)
    shown = []
    for _ in range(400):
        word, other = chance.sample(Echo.words, 2)
        said = word if chance.random() < 0.7 else other
        shown.append(Demonstration(f"repeat say {word}", f"<action>{said}</action>"))
    clone(model, tokenizer, shown, steps=200, learning_rate=1e-2, warm_up=5)
    return model.state_dict()


def build(tokenizer, weights):
    model = build_model(tokenizer, seed=0, hidden=16, layers=1, heads=2)
    model.load_state_dict(weights)
    return model


def configured(template, *overrides, steps=2):
    """verl's configuration of a run of so many steps. Its environment variables have to be set."""
    template.write_text(PROMPT)
    return compose(
        "webshop_demo",
        [
            f"trainer.total_training_steps={steps}",
            "trainer.test_freq=1",
            "data.train_batch_size=4",
            "data.max_response_length=6",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=3",
            "actor_rollout_ref.actor.optim.lr=0.003",
            f"actor_rollout_ref.rollout.custom.episode.prompt={template}",
            *overrides,
        ],
    )
