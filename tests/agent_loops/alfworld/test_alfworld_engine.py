"""The engine's parts: PDDL, joins, the text grammar, and the undocumented rules of the official engine."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_loops.alfworld.facts import Facts, Relation
from agent_loops.alfworld.game import Game, Play
from agent_loops.alfworld.grammar import GrammarError, parse_query
from agent_loops.alfworld.joins import Join
from agent_loops.alfworld.pddl import Conjunction, Domain, Literal, PddlError, disjuncts, parse, parse_domain
from tests.helpers.kitchen import DOMAIN, game_data, grammar, problem

PREDICATES = {"p": ("object",), "q": ("object", "object"), "r": ("object", "object", "object")}
OBJECTS = "abcd"
VARIABLES = ("?x", "?y", "?z")


@st.composite
def conjunctions(draw: st.DrawFn) -> Conjunction:
    """Literals over three variables, without a variable twice in one."""
    literals = []
    for _ in range(draw(st.integers(1, 4))):
        predicate = draw(st.sampled_from([*PREDICATES, "="]))
        arity = 2 if predicate == "=" else len(PREDICATES[predicate])
        terms = draw(st.permutations([*VARIABLES, "a"]))[:arity]
        literals.append(Literal(predicate, tuple(terms), draw(st.booleans())))
    return Conjunction(tuple(literals), dict.fromkeys(VARIABLES, "object"))


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, set[tuple[str, ...]]]:
    return {
        predicate: draw(st.sets(st.tuples(*[st.sampled_from(OBJECTS)] * len(kinds)), max_size=12))
        for predicate, kinds in PREDICATES.items()
    }


@given(conjunctions(), worlds(), st.sets(st.sampled_from(VARIABLES)), st.tuples(*[st.sampled_from(OBJECTS)] * 3))
def test_a_join_finds_what_trying_everything_finds(
    conjunction: Conjunction, world: dict[str, set[tuple[str, ...]]], known: set[str], values: tuple[str, ...]
) -> None:
    everything = {"- object": {(name,) for name in OBJECTS}, **world}
    relations = {predicate: Relation(sorted(facts)) for predicate, facts in everything.items()}
    before = tuple(name for name in VARIABLES if name in known)
    fixed = dict(zip(VARIABLES, values, strict=True))
    domain = Domain(frozenset({"object"}), PREDICATES, ())
    join = Join(conjunction, before, VARIABLES, domain, relations)
    found = join.solve(Facts(relations, ()), tuple(fixed[name] for name in before))

    def holds(literal: Literal, env: dict[str, str]) -> bool:
        terms = tuple(env.get(term, term) for term in literal.terms)
        return (terms[0] == terms[1] if literal.predicate == "=" else terms in world[literal.predicate]) == (
            literal.positive
        )

    expected = set()
    for candidate in itertools.product(OBJECTS, repeat=3):
        env = dict(zip(VARIABLES, candidate, strict=True))
        if all(env[name] == fixed[name] for name in before) and all(holds(one, env) for one in conjunction.literals):
            expected.add(candidate)
    assert set(found) == expected
    assert len(found) == len(expected)


@given(st.lists(st.tuples(st.booleans(), st.tuples(st.sampled_from("abc"), st.sampled_from("abc")))))
def test_indices_follow_every_change(changes: list[tuple[bool, tuple[str, str]]]) -> None:
    facts = Facts({"q": Relation([("a", "b")])}, ["q"])
    facts["q"].matching((0,), ("a",))  # makes the index that has to follow
    holding, denied = {("a", "b")}, set()
    for add, fact in changes:
        version, known = facts["q"].version, fact in holding
        (facts.add if add else facts.remove)("q", fact)
        (holding.add if add else holding.discard)(fact)
        (denied.discard if add else denied.add)(fact)
        assert (facts["q"].version == version) == (known == add)
        for value in "abc":
            assert set(facts["q"].matching((0,), (value,))) == {one for one in holding if one[0] == value}
        assert set(facts["q"].matching((), ())) == holding
        assert set(facts["not_q"].matching((), ())) == denied


def test_conditions_in_normal_form() -> None:
    tree = parse("(and (p ?x) (or (not (q ?x)) (exists (?x - kind) (and (r ?x) (not (= ?x c))))))")
    first, second = disjuncts(tree, {"?x": "object"})
    assert first.literals == (Literal("p", ("?x",)), Literal("q", ("?x",), False))
    assert second.literals == (Literal("p", ("?x",)), Literal("r", ("?x#1",)), Literal("=", ("?x#1", "c"), False))
    assert second.types == {"?x": "object", "?x#1": "kind"}
    (negated,) = disjuncts(parse("(not (or (p ?x) (not (q ?x))))"), {})
    assert negated.literals == (Literal("p", ("?x",), False), Literal("q", ("?x",)))


@pytest.mark.parametrize("text", ["(a", "a)", "", "(a) (b)", "(define (domain d) (:types a -) (:predicates))"])
def test_broken_pddl_is_refused(text: str) -> None:
    with pytest.raises(PddlError):
        parse_domain(text)


@pytest.mark.parametrize("condition", ["(forall (?x) (p ?x))", "(not (exists (?x) (p ?x)))", "(and p)"])
def test_what_is_not_supported_is_refused(condition: str) -> None:
    with pytest.raises(PddlError):
        disjuncts(parse(condition), {})


def kitchen(**parts: str) -> Play:
    return Play(Game(game_data(**parts)))


def commands(play: Play, *texts: str) -> list[str]:
    answers = []
    for text in texts:
        play.command(text)
        answers.append(play.text)
    return answers


def test_numbers_are_counted_down_and_basins_named() -> None:
    play = kitchen()
    commands(play, "go to fridge 1", "open fridge 1")
    # …_01_… sorts before …_02_… and so has the higher number; lists keep the order of the PDDL names
    assert play.text.endswith("a apple 2, and a apple 1.")
    assert "go to sinkbasin 1" in play.commands


def test_one_cannot_go_where_one_is() -> None:
    play = kitchen()
    play.command("go to desk 1")
    assert "go to desk 1" not in play.commands and "go to fridge 1" in play.commands


def test_what_an_action_adds_stays() -> None:
    # with one more effect, going where one is does something, and so is offered; one does not leave thereby
    play = kitchen(
        pddl_domain=DOMAIN.replace("(atLocation ?a ?lEnd) (increase", "(atLocation ?a ?lEnd) (looked ?a) (increase")
    )
    answers = commands(play, "go to desk 1", "go to desk 1", "look")
    assert answers[1:] == ["You go. On the desk 1: nothing.", "You face the desk 1."]


def test_variables_of_a_query_stand_for_different_things() -> None:
    pairs = "[{o.name + '+' + p.name | inreceptacle(o:object, r:receptacle) & inreceptacle(p:object, r:receptacle)}]"
    play = kitchen(grammar=grammar().replace("\nSay what to do.\n", pairs))
    assert commands(play, "help") == ["apple 2+apple 1, and apple 1+apple 2"]


def test_two_receptacles_at_one_place() -> None:
    shared = problem().replace("(receptacleAtLocation Desk_bar__plus_01_dot_50 loc_2)", "")
    shared = shared.replace("(openable", "(receptacleAtLocation Desk_bar__plus_01_dot_50 loc_1) (openable", 1)
    play = kitchen(pddl_problem=shared)
    assert commands(play, "go to desk 1", "look")[1] == "You face the desk 1, and fridge 1."
    assert "go to fridge 1" not in play.commands  # one is there


def test_a_type_that_nobody_declared_has_no_objects() -> None:
    play = kitchen()
    commands(play, "go to sinkbasin 1")
    assert "examine torch 1" not in play.commands  # `location,` in the domain, as in ALFWorld's
    assert commands(play, "take torch 1 from sinkbasin 1", "examine torch 1")[1] == "A torch 1."


def test_what_was_taken_away_is_told_from_what_never_was() -> None:
    play = kitchen()
    commands(play, "go to sinkbasin 1", "take torch 1 from sinkbasin 1")
    assert commands(play, "use torch 1", "use torch 1", "use torch 1") == [
        "The torch 1 shines.",
        "The torch 1 goes out.",
        "The torch 1 shines.",
    ]


def test_a_text_loses_its_leading_blanks_only() -> None:
    assert commands(kitchen(), "help") == ["Say what to do.\n"]


def test_what_a_room_shows_depends_on_where_one_stands() -> None:
    play = kitchen()
    # here `l` is bound to the place where one stands, which has no receptacle
    assert commands(play, "look") == ["You stand in a kitchen and see nothing."]


def test_the_goal_is_any_apple_on_any_desk() -> None:
    play = kitchen()
    commands(play, "go to fridge 1", "open fridge 1", "take apple 1 from fridge 1", "go to desk 1")
    assert not play.won
    commands(play, "move apple 1 to desk 1")
    assert play.won
    commands(play, "take apple 1 from desk 1")
    assert not play.won


@given(st.lists(st.integers(0, 30), max_size=25))
def test_random_play_keeps_the_world_in_order(choices: list[int]) -> None:
    play = kitchen()
    for choice in choices:
        before = list(play.commands)
        command = before[choice % len(before)]
        play.command(command)
        assert play.text != "Nothing happens."
        assert play.commands == sorted(set(play.commands))
        places = Counter(command.split()[0] for command in play.commands)
        assert places["go"] in (2, 3) and places["look"] == places["help"] == places["inventory"] == 1
        # what is known from earlier steps is what a new look at everything would find
        fresh = {text for schema in play._game.schemas for text in schema.commands(play._facts)}
        assert fresh == set(play.commands)


def test_expressions_are_not_python() -> None:
    hostile = grammar().replace("{r.indefinite} {r.name or r.id}", "{__import__('os').getcwd()}")
    with pytest.raises(GrammarError, match="cannot be evaluated"):
        kitchen(grammar=hostile)


@pytest.mark.parametrize(
    "change", [("#one(r)#", "#two(r)#"), ("r.indefinite", "x.indefinite"), ("r.indefinite", "r.size")]
)
def test_a_grammar_that_names_what_does_not_exist(change: tuple[str, str]) -> None:
    with pytest.raises(GrammarError):
        kitchen(grammar=grammar().replace(*change))


def test_a_template_over_changing_facts_is_refused() -> None:
    changing = grammar().replace('"use {o}"', '"use [{o.name | holds(a:agent, o:object)}]"')
    with pytest.raises(GrammarError, match="asks for facts that change"):
        kitchen(grammar=changing)


def test_queries() -> None:
    query = parse_query("holds(a:agent, o:object) & lamp(o:object)")
    assert query.literals == (Literal("holds", ("?a", "?o")), Literal("lamp", ("?o",)))
    with pytest.raises(GrammarError, match="not a query"):
        parse_query("holds a o")


def test_the_domain_is_read_once() -> None:
    assert parse_domain(DOMAIN) is parse_domain(DOMAIN)
