"""A small kitchen in the format of ALFWorld's game files, for the tests: five verbs, a few objects, one goal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOMAIN = """
(define (domain kitchen) ; what tests need of ALFWorld's
 (:types agent location receptacle object rtype otype)
 (:predicates
  (atLocation ?a - agent ?l - location) (receptacleAtLocation ?r - receptacle ?l - location)
  (openable ?r - receptacle) (opened ?r - receptacle) (inReceptacle ?o - object ?r - receptacle)
  (holds ?a - agent ?o - object) (holdsAny ?a - agent) (objectType ?o - object ?t - otype)
  (receptacleType ?r - receptacle ?t - rtype) (isOn ?o - object) (lamp ?o - object) (looked ?a - agent))
 (:functions (total-cost) - number)
 (:action look :parameters (?a - agent ?l - location)
  :precondition (and (atLocation ?a ?l)) :effect (and (looked ?a)))
 (:action inventory :parameters (?a - agent) :precondition () :effect (and (looked ?a)))
 (:action help :parameters (?a - agent) :precondition () :effect (and (looked ?a)))
 (:action GotoLocation :parameters (?a - agent ?lStart - location ?lEnd - location ?r - receptacle)
  :precondition (and (atLocation ?a ?lStart) (receptacleAtLocation ?r ?lEnd))
  :effect (and (not (atLocation ?a ?lStart)) (atLocation ?a ?lEnd) (increase (total-cost) 1)))
 (:action OpenObject :parameters (?a - agent ?l - location ?r - receptacle)
  :precondition (and (openable ?r) (atLocation ?a ?l) (receptacleAtLocation ?r ?l) (not (opened ?r)))
  :effect (and (opened ?r)))
 (:action PickupObject :parameters (?a - agent ?l - location ?o - object ?r - receptacle)
  :precondition (and (atLocation ?a ?l) (receptacleAtLocation ?r ?l) (inReceptacle ?o ?r) (not (holdsAny ?a))
   (or (not (openable ?r)) (opened ?r)))
  :effect (and (not (inReceptacle ?o ?r)) (holds ?a ?o) (holdsAny ?a)))
 (:action PutObject :parameters (?a - agent ?l - location ?o - object ?r - receptacle)
  :precondition (and (holds ?a ?o) (atLocation ?a ?l) (receptacleAtLocation ?r ?l)
   (or (not (openable ?r)) (opened ?r)))
  :effect (and (inReceptacle ?o ?r) (not (holds ?a ?o)) (not (holdsAny ?a))))
 (:action ToggleObject :parameters (?a - agent ?o - object)
  :precondition (and (holds ?a ?o) (lamp ?o))
  :effect (and (when (isOn ?o) (not (isOn ?o))) (when (not (isOn ?o)) (isOn ?o))))
 (:action examineObject :parameters (?a - agent ?o - object)
  :precondition (or (exists (?l - location, ?r - receptacle) (and (atLocation ?a ?l) (inReceptacle ?o ?r)))
   (holds ?a ?o))
  :effect (and (looked ?a))))
"""

RULES = {
    "intro": [{"rhs": "-= Kitchen =-\n\n#look.feedback#\n\n#task#"}],
    "task": [{"rhs": "Your task is to: TASK."}],
    "look.feedback": [
        {
            "condition": "atlocation(a:agent, l:location) & receptacleatlocation(r:receptacle, l:location)",
            "rhs": "You face the "
            "[{r.name | atlocation(a:agent, l:location) & receptacleatlocation(r:receptacle, l:location)}].",
        },
        {"rhs": "You stand in a kitchen and see [{#one(r)# | receptacleatlocation(r:receptacle, l:location)}]."},
    ],
    "one(r)": [{"rhs": "{r.indefinite} {r.name or r.id}"}],
    "seen": [
        {"condition": "openable(r:receptacle) & opened(r:receptacle)", "rhs": "In the open {r.name}: #all#."},
        {"condition": "openable(r:receptacle)", "rhs": "The {r.name} is closed."},
        {"rhs": "On the {r.name}: #all#."},
    ],
    "all": [{"rhs": "[{o.indefinite + ' ' + o.name | inreceptacle(o:object, r:receptacle)}]"}],
    "inventory.feedback": [
        {"condition": "holdsany(a:agent)", "rhs": "You carry [{o.name | holds(a:agent, o:object)}]."},
        {"rhs": "You carry nothing."},
    ],
    "toggle.feedback": [
        {"condition": "not_ison(o:object)", "rhs": "The {o.name} goes out."},
        {"condition": "ison(o:object)", "rhs": "The {o.name} shines."},
        {"rhs": "Nothing."},
    ],
    "list_empty": [{"rhs": "nothing"}],
    "list_separator": [{"rhs": ", "}],
    "list_last_separator": [{"rhs": ", and "}],
}

ACTIONS = {
    "look": ("look", "#look.feedback#"),
    "inventory": ("inventory", "#inventory.feedback#"),
    "help": ("help", "\nSay what to do.\n"),
    "GotoLocation": ("go to [{r.name | receptacleatlocation(r:receptacle, lend:location)}]", "You go. #seen#"),
    "OpenObject": ("open {r}", "You open the {r.name}. #seen#"),
    "PickupObject": ("take {o} from {r}", "You take the {o.name}."),
    "PutObject": ("move {o} to {r}", "You move the {o.name} to the {r.name}."),
    "ToggleObject": ("use {o}", "#toggle.feedback#"),
    "examineObject": ("examine {o}", "A {o.name}."),
}

WALKTHROUGH = [
    "go to fridge 1",
    "open fridge 1",
    "take apple 2 from fridge 1",
    "go to desk 1",
    "move apple 2 to desk 1",
]


def grammar(task: str = "put an apple on the desk") -> str:
    rules = json.dumps({**RULES, "task": [{"rhs": RULES["task"][0]["rhs"].replace("TASK", task)}]})
    actions = "\n".join(
        f'action {name} {{\n    template :: "{template}";\n    feedback :: "{feedback}";\n}}\n'
        for name, (template, feedback) in ACTIONS.items()
    )
    return f'grammar :: """\n{rules}\n""";\n\n{actions}'


def problem() -> str:
    def thing(kind: str, number: int) -> str:
        return f"{kind}_bar__plus_0{number}_dot_50"

    fridge, desk, sink = thing("Fridge", 1), thing("Desk", 1), thing("Sink", 1) + "_bar_SinkBasin"
    apples, torch = [thing("Apple", 1), thing("Apple", 2)], thing("Torch", 1)
    return f"""
(define (problem p) (:domain kitchen)
 (:objects agent1 - agent
  loc_1 loc_2 loc_3 loc_4 - location
  {fridge} {desk} {sink} - receptacle
  {" ".join(apples)} {torch} - object
  DeskType FridgeType SinkType - rtype
  AppleType - otype)
 (:init (= (total-cost) 0) (atLocation agent1 loc_4)
  (receptacleAtLocation {fridge} loc_1) (receptacleAtLocation {desk} loc_2) (receptacleAtLocation {sink} loc_3)
  (openable {fridge}) (receptacleType {desk} DeskType)
  {" ".join(f"(objectType {apple} AppleType) (inReceptacle {apple} {fridge})" for apple in apples)}
  (inReceptacle {torch} {sink}) (lamp {torch}))
 (:goal (and (exists (?r - receptacle) (exists (?o - object)
  (and (inReceptacle ?o ?r) (objectType ?o AppleType) (receptacleType ?r DeskType)))))))
"""


def game_data(**parts: Any) -> dict[str, Any]:
    """Return the content of the kitchen's game file, with a test's changes."""
    return {
        "pddl_domain": DOMAIN,
        "grammar": grammar(),
        "pddl_problem": problem(),
        "solvable": True,
        "walkthrough": WALKTHROUGH,
        **parts,
    }


def write_games(directory: Path, n_train: int = 3) -> Path:
    """Write a data directory with `json_2.1.1`: kitchens in all three splits."""
    names = [("train", number) for number in range(n_train)] + [("valid_seen", 0), ("valid_unseen", 0)]
    for split, number in names:
        kind = ("pick_and_place_simple", "pick_two_obj_and_place")[number % 2]
        folder = directory / "json_2.1.1" / split / f"{kind}-Apple-None-Desk-{number}" / "trial_T1"
        folder.mkdir(parents=True)
        data = game_data(grammar=grammar(f"put apple {number} of {split} on the desk"))
        (folder / "game.tw-pddl").write_text(json.dumps(data), encoding="utf-8")
    return directory
