"""Components by name and by text: what is read, what is refused, and with which words."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import (
    ConfigurationError,
    DataUnavailableError,
    FlwrRobustError,
    InfeasibleError,
    Pipeline,
    UnknownNameError,
    parse,
)
from flwr_robust.aggregators.centered_clipping import CenteredClipping
from flwr_robust.aggregators.faba import FABA
from flwr_robust.aggregators.geometric_median import GeometricMedian
from flwr_robust.aggregators.krum import VARIANTS, Krum
from flwr_robust.aggregators.lfighter import LFighter
from flwr_robust.aggregators.mean import Mean
from flwr_robust.aggregators.median import Median
from flwr_robust.aggregators.multi_krum import MultiKrum
from flwr_robust.aggregators.trimmed_mean import TrimmedMean
from flwr_robust.attacks.data.base import data_attacks
from flwr_robust.core.rule import aggregators, preaggregators
from flwr_robust.core.spec import Component, JoinedRegistry, Registry, parse_chain
from flwr_robust.errors import check_choice, check_integer, check_number
from flwr_robust.preaggregators.clip import Clip
from flwr_robust.tasks.partition import partitions

quick = settings(deadline=None, max_examples=60)


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "chain"),
    [
        ("mean", [("mean", {})]),
        ("  mean()  ", [("mean", {})]),
        ("krum(f=2)", [("krum", {"f": 2})]),
        ("krum( f = 2 , variant = 'byzfl', )", [("krum", {"f": 2, "variant": "byzfl"})]),
        ("clip(c=2.0)|krum(f=2)", [("clip", {"c": 2.0}), ("krum", {"f": 2})]),
        ("a | b(x=-1) | c", [("a", {}), ("b", {"x": -1}), ("c", {})]),
        ("a(b=None, c=[1, 'x'], d=True, e=1e-3)", [("a", {"b": None, "c": [1, "x"], "d": True, "e": 0.001})]),
        ('a(b="x | y(z=1)")', [("a", {"b": "x | y(z=1)"})]),
    ],
)
def test_chains_are_read(text, chain):
    assert list(parse_chain(text, "defence")) == chain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected text such as"),
        ("   ", "expected text such as"),
        (None, "got None"),
        (3, "got 3"),
        (b"mean", "got b'mean'"),
        ("krum(f=2", "cannot read"),
        ("krum f=2", "cannot read"),
        ("mean |", "cannot read"),
        ("| mean", "cannot read"),
        ("mean; mean", "cannot read"),
        ("mean\nmean", "cannot read"),
        ("mean\0", "cannot read"),
        ("(" * 500 + "mean", "cannot read"),
        ("f=2", "cannot read"),
        ("1", "'1' in '1' is not of the form"),
        ("'mean'", "is not of the form"),
        ("mean & median", "is not of the form"),
        ("mean + median", "is not of the form"),
        ("a.mean()", "'a.mean\\(\\)' in .* is not of the form"),
        ("mean()()", "is not of the form"),
        ("mean[0]", "is not of the form"),
        ("mean, median", "is not of the form"),
        ("lambda: mean", "is not of the form"),
        ("krum(2)", "name every field, as in krum\\(field=value\\)"),
        ("krum(2, f=2)", "name every field"),
        ("krum(*[2])", "name every field"),
        ("krum(**{'f': 2})", "name every field"),
        ("krum(f=2, f=3)", "field f is given twice"),
        ("krum(f=x)", "f must be a literal .* got 'x'"),
        ("krum(f=1 + 1)", "f must be a literal"),
        ("krum(f=int('2'))", "f must be a literal"),
        ("krum(f=[i for i in 'a'])", "f must be a literal"),
        ("krum(f=f'{1}')", "f must be a literal"),
    ],
)
def test_what_is_no_chain_is_refused(text, words):
    with pytest.raises(ConfigurationError, match=words):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "krum(f=__import__('os').system('exit 1'))",
        "krum(f=print('evaluated'))",
        "__import__('os')",
        "exit()",
        "krum(f=exit())",
    ],
)
def test_nothing_is_evaluated(text, capsys):
    with pytest.raises(ConfigurationError):
        parse(text)
    assert capsys.readouterr().out == ""


@quick
@given(st.text(max_size=40))
def test_garbage_never_escapes_as_another_error(text):
    for read in (parse, partitions.parse, data_attacks.parse):
        with contextlib.suppress(FlwrRobustError):
            read(text)


@quick
@given(st.text(alphabet="kmeanru(f=2)|,' \"1.[]{}*-:", max_size=25))
def test_near_misses_never_escape_as_another_error(text):
    try:
        rule = parse(text)
    except FlwrRobustError:
        return
    assert parse(str(rule)) == rule


# -- names and fields ----------------------------------------------------------------------------


def test_an_unknown_rule_lists_the_rules():
    with pytest.raises(UnknownNameError) as caught:
        parse("krumm(f=2)")
    message = str(caught.value)
    assert "unknown aggregator 'krumm'" in message
    assert all(name in message for name in aggregators.members())
    assert "Did you mean 'krum'?" in message


def test_an_unknown_name_without_a_neighbour_gets_no_hint():
    with pytest.raises(UnknownNameError) as caught:
        parse("xyzzy")
    assert "Did you mean" not in str(caught.value)
    assert str(UnknownNameError("thing", "a", [])) == "unknown thing 'a'; allowed: none."


def test_an_unknown_field_lists_the_fields():
    with pytest.raises(UnknownNameError, match="unknown field of krum 'g'; allowed: f, strict, variant"):
        parse("krum(f=1, g=2)")


def test_a_missing_field_is_named():
    with pytest.raises(ConfigurationError, match=r"krum: f must be given, e\.g\. krum\(f=\.\.\.\)"):
        parse("krum")
    with pytest.raises(ConfigurationError, match=r"clip: c must be given"):
        parse("clip() | mean")


def test_a_preaggregator_cannot_come_last():
    for text in ("clip(c=1.0)", "clip(c=1.0) | clip(c=2.0)"):
        with pytest.raises(UnknownNameError, match=r"pre-aggregator cannot come last.*'clip'\. .*Allowed: .*krum"):
            parse(text)


def test_an_aggregator_comes_last():
    with pytest.raises(UnknownNameError, match=r"an aggregator comes last.*'krum'; allowed: .*clip"):
        parse("krum(f=1) | mean")


def test_an_unknown_stage_lists_the_preaggregators():
    words = r"unknown pre-aggregator 'clap'\. Did you mean 'clip'\? Allowed: .*clip"
    with pytest.raises(UnknownNameError, match=words):
        parse("clap(c=1.0) | mean")


@pytest.mark.parametrize("registry", [aggregators, preaggregators, partitions, data_attacks], ids=lambda r: r.kind)
def test_members_are_what_they_are_registered_as(registry):
    members = registry.members()
    assert members
    assert list(members) == sorted(members)
    for name, cls in members.items():
        assert cls.name == name
        assert registry.get(name) is cls
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen


def test_a_registry_parses_one_component():
    assert partitions.parse("dirichlet(beta=0.5)").beta == 0.5
    with pytest.raises(ConfigurationError, match=r"one partition is expected, without '\|'"):
        partitions.parse("iid | iid")
    with pytest.raises(UnknownNameError, match="Allowed: by_label, dirichlet, flwr_datasets, gamma_sim"):
        partitions.parse("idd")
    with pytest.raises(UnknownNameError, match="unknown attack 'flip'"):
        data_attacks.parse("flip")


def test_joined_registries_are_one_flat_set_of_names(monkeypatch):
    joined = JoinedRegistry("thing", partitions, data_attacks)
    assert list(joined.members()) == sorted([*partitions.members(), *data_attacks.members()])
    assert joined.parse("dirichlet(beta=0.5)") == partitions.parse("dirichlet(beta=0.5)")
    assert joined.parse("label_flip(p=0.5)") == data_attacks.parse("label_flip(p=0.5)")
    with pytest.raises(
        UnknownNameError, match=r"unknown thing 'label_flop'.* Allowed: backdoor, by_label, .*label_flip"
    ):
        joined.parse("label_flop")
    monkeypatch.setitem(data_attacks._members, "iid", data_attacks.get("label_flip"))
    with pytest.raises(
        ConfigurationError, match=r"thing 'iid' is registered twice: by flwr_robust.tasks.partition and by .*"
    ):
        joined.members()


# -- round trips ---------------------------------------------------------------------------------

counts = st.integers(0, 10**6)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
at_least_one = st.floats(min_value=1, allow_infinity=False)
rules = st.one_of(
    st.builds(Mean, weighted=st.booleans(), clamp=at_least_one),
    st.builds(Median, f=st.none() | counts),
    st.builds(TrimmedMean, f=counts),
    st.builds(TrimmedMean, fraction=st.floats(0, 0.5, exclude_max=True)),
    st.builds(Krum, f=counts, variant=st.sampled_from(sorted(VARIANTS))),
    st.builds(MultiKrum, f=counts, m=st.none() | st.integers(1, 99), variant=st.sampled_from(sorted(VARIANTS))),
    st.builds(
        GeometricMedian,
        f=st.none() | counts,
        tolerance=st.floats(min_value=1e-8, allow_infinity=False),
        nu=positive,
        iterations=st.none() | st.integers(1, 99),
        weighted=st.booleans(),
    ),
    st.builds(FABA, f=counts),
    st.builds(CenteredClipping, tau=positive | st.just("median") | st.integers(1, 9), steps=st.integers(1, 9)),
    st.builds(LFighter, head=st.none() | st.text(max_size=20)),
)
clips = st.builds(Clip, c=positive | st.just("median"))


@quick
@given(rules, st.lists(clips, max_size=3))
def test_text_and_rule_are_one(rule, stages):
    whole = Pipeline(tuple(stages), rule) if stages else rule
    assert parse(str(whole)) == whole
    assert str(whole).count(" | ") >= len(stages)


def test_the_text_says_only_what_differs():
    assert str(parse("krum(variant='paper', f=2)")) == "krum(f=2)"
    assert str(parse("mean(weighted=False)")) == "mean()"
    assert str(parse("clip(c=2)|clip(c=1.5)|krum(variant='byzfl',f=0)")) == (
        "clip(c=2) | clip(c=1.5) | krum(f=0, variant='byzfl')"
    )


def test_different_rules_have_different_texts():
    texts = [str(parse(t)) for t in ("krum(f=1)", "krum(f=2)", "krum(f=1, variant='byzfl')", "clip(c=1.0) | krum(f=1)")]
    assert len(set(texts)) == len(texts)
    assert parse("krum(f=1)") != parse("multi_krum(f=1)")


def test_numpy_floats_round_trip():
    numpy = pytest.importorskip("numpy")
    rule = Pipeline((Clip(c=numpy.float64(2.0)),), Mean())
    assert parse(str(rule)) == rule


# -- registering ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing(Component):
    size: int = 1


def test_two_components_of_one_name_are_an_error():
    registry = Registry("thing", "json")
    registry.register("one")(Thing)
    registry.register("one")(Thing)  # the same class again is none: modules are reloaded

    @dataclass(frozen=True)
    class Other(Component):
        pass

    with pytest.raises(ConfigurationError, match=r"thing 'one' is registered twice: by .*rename one"):
        registry.register("one")(Other)
    assert registry.get("one") is Thing


def test_two_files_with_a_class_of_one_name_are_an_error():
    registry = Registry("thing", "json")
    registry.register("one")(Thing)
    twin = type("Thing", (Component,), {"__qualname__": "Thing", "__module__": "another.file"})
    with pytest.raises(ConfigurationError, match="registered twice"):
        registry.register("one")(twin)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package of modules and clean up after its import."""

    def write(**modules):
        folder = tmp_path / "someplugins"
        folder.mkdir()
        (folder / "__init__.py").write_text("from flwr_robust.core.spec import Registry\nR = Registry('x', __name__)\n")
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        import someplugins

        return someplugins.R

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "someplugins"]:
        del sys.modules[name]


MODULE = (
    "from dataclasses import dataclass\n"
    "from flwr_robust.core.spec import Component\n"
    "from someplugins import R\n"
    "@R.register('{0}')\n@dataclass(frozen=True)\nclass {1}(Component):\n    size: int\n"
)


def test_members_are_found_by_listing_the_folder(package):
    registry = package(second=MODULE.format("b", "B"), first=MODULE.format("a", "A"))
    assert list(registry.members()) == ["a", "b"]
    assert str(registry.parse("b(size=3)")) == "b(size=3)"


def test_two_files_of_one_name_are_an_error(package):
    registry = package(first=MODULE.format("a", "A"), second=MODULE.format("a", "B"))
    words = r"'a' is registered twice: by someplugins\.first and by someplugins\.second"
    with pytest.raises(ConfigurationError, match=words):
        registry.members()


def test_a_module_that_cannot_be_imported_fails_every_time(package):
    registry = package(good=MODULE.format("a", "A"), worse="import nothing_of_this_name\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            registry.members()


# -- the errors ----------------------------------------------------------------------------------


def test_all_errors_have_one_root():
    kinds = {
        ConfigurationError: ValueError,
        UnknownNameError: ValueError,
        InfeasibleError: ValueError,
        DataUnavailableError: FileNotFoundError,
    }
    assert all(issubclass(kind, FlwrRobustError) and issubclass(kind, usual) for kind, usual in kinds.items())


@pytest.mark.parametrize("error", [ConfigurationError("x"), InfeasibleError("x"), DataUnavailableError("x")], ids=repr)
def test_errors_survive_the_way_from_another_process(error):
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other)) == (type(error), str(error))


def test_unknown_names_survive_the_way_from_another_process():
    error = UnknownNameError("thing", "a", ["b"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# -- the checks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, True, 1.0, "1", None])
def test_check_integer(value):
    check_integer("owner", "field", 0, 0)
    with pytest.raises(ConfigurationError, match=r"owner: field must be an integer >= 0; got field="):
        check_integer("owner", "field", value, 0)


@pytest.mark.parametrize("value", [0, 1, -0.5, 2, float("nan"), float("inf"), True, "0.5", None])
def test_check_number_exclusive(value):
    check_number("owner", "field", 0.5, above=0, below=1)
    with pytest.raises(ConfigurationError, match=r"owner: field must be a finite number and > 0 and < 1; got field="):
        check_number("owner", "field", value, above=0, below=1)


def test_check_number_inclusive():
    for value in (0, 0.0, 1, 0.5):
        check_number("owner", "field", value, minimum=0, maximum=1)
    for value in (-1e-9, 1.0000001):
        with pytest.raises(ConfigurationError, match=">= 0 and <= 1"):
            check_number("owner", "field", value, minimum=0, maximum=1)


def test_check_choice():
    check_choice("owner", "field", "a", ("a", "b"))
    for value in ("c", None, ["a"]):
        with pytest.raises(ConfigurationError, match="owner: field must be one of a, b; got field="):
            check_choice("owner", "field", value, ("b", "a"))
