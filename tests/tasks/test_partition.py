"""Partitions: disjoint and covering, drawn from the seed, and as skewed as they say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError
from flwr_robust.tasks import partition as partition_module
from flwr_robust.tasks.partition import (
    ByLabel,
    Dirichlet,
    Iid,
    KClasses,
    Natural,
    Peng2025,
    Shards,
    Sizes,
    label_distances,
    partitions,
)

ALL = [
    "iid",
    "dirichlet(beta=1.0)",
    "dirichlet(beta=1.0, balanced=True)",
    "gamma_similarity(gamma=0.66)",
    "by_label",
    "k_classes(k=3)",
    "shards",
]
DRAWN = [text for text in ALL if text != "by_label"]

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))


def histogram(labels, parts):
    """Samples per client and class."""
    return np.array([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def assert_split(parts, samples, clients):
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(samples))


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("clients", [1, 7, 10, 13])
def test_parts_are_disjoint_and_cover(text, clients):
    if text == "k_classes(k=3)" and clients == 1:
        text = "k_classes(k=10)"
    parts = partitions.parse(text)(LABELS, clients, seed=3)
    assert_split(parts, len(LABELS), clients)
    assert min(len(part) for part in parts) > 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data())
def test_parts_of_any_labels_are_disjoint_and_cover(labels, data):
    labels = np.array(labels)
    clients = data.draw(st.integers(1, len(labels)))
    seed = data.draw(st.integers(0, 2**31))
    k = data.draw(st.integers(1, 6))
    for split in (Iid(), Dirichlet(beta=0.7, minimum=0), ByLabel(), KClasses(k=k), Shards(per_client=k)):
        try:
            parts = split(labels, clients, seed)
        except ConfigurationError:
            count = labels.max() + 1
            assert (split.name == "k_classes" and (k > count or clients * k < count)) or (
                split.name == "shards" and clients * k > len(labels)
            )
            continue
        assert_split(parts, len(labels), clients)


@pytest.mark.parametrize("text", ALL)
def test_the_same_seed_gives_the_same_parts(text):
    split, kept = partitions.parse(text), LABELS.copy()
    assert same(split(LABELS, 10, seed=1), split(LABELS, 10, seed=1))
    np.testing.assert_array_equal(LABELS, kept)


@pytest.mark.parametrize("text", DRAWN)
def test_another_seed_gives_other_parts(text):
    split = partitions.parse(text)
    assert not same(split(LABELS, 10, seed=1), split(LABELS, 10, seed=2))


def test_the_global_generator_is_neither_read_nor_advanced():
    split = Dirichlet(beta=1.0)
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = split(LABELS, 10, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert same(first, split(LABELS, 10, seed=1))


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("clients", [0, -1, 601, True, 2.0])
def test_the_number_of_clients_is_checked(text, clients):
    with pytest.raises(ConfigurationError, match="clients"):
        partitions.parse(text)(LABELS, clients, seed=0)


def test_more_clients_than_samples_says_how_many_there_are():
    with pytest.raises(ConfigurationError, match="at most the number of samples, 600; got clients=601"):
        Iid()(LABELS, 601, seed=0)
    assert_split(Iid()(LABELS, 600, seed=0), 600, 600)


@pytest.mark.parametrize("split", [ByLabel(), KClasses(k=1), Dirichlet(beta=1.0)], ids=str)
def test_negative_labels_are_refused(split):
    with pytest.raises(ConfigurationError, match="label"):
        split(np.array([-1, 0, 1, 0, 1, -1]), 2, seed=0)


# -- iid -----------------------------------------------------------------------------------------


def test_iid_parts_are_equal_and_mixed():
    parts = Iid()(LABELS, 7, seed=0)
    assert sorted(len(part) for part in parts) == [85, 85, 86, 86, 86, 86, 86]
    table = histogram(LABELS, Iid()(LABELS, 5, seed=0))
    # Each entry is hypergeometric with mean 12 and a standard deviation below 3.
    assert table.min() >= 1
    assert table.max() <= 27
    assert table.std() > 0.5  # drawn, not dealt


def test_iid_does_not_follow_the_order_of_the_samples():
    parts = Iid()(np.sort(LABELS), 10, seed=0)
    assert (histogram(np.sort(LABELS), parts) > 0).sum() > 90


# -- dirichlet -----------------------------------------------------------------------------------


def skew(table):
    """Mean over clients of the share of a client's largest class: 1 / classes when iid, 1 when extreme."""
    return float((table.max(1) / table.sum(1)).mean())


def test_small_beta_is_heterogeneous_and_large_beta_is_not():
    skews = {}
    for beta in (0.05, 1.0, 1000.0):
        parts = [Dirichlet(beta=beta)(LABELS, 10, seed) for seed in range(3)]
        skews[beta] = np.mean([skew(histogram(LABELS, p)) for p in parts])
    assert skews[0.05] > 0.6
    assert 0.2 < skews[1.0] < 0.55
    assert 0.1 <= skews[1000.0] < 0.16
    assert skews[0.05] > skews[1.0] > skews[1000.0]


def test_dirichlet_proportions_have_the_moments_of_the_distribution():
    # One class over 4 clients: a share has mean 1/4 and variance (1/4)(3/4) / (4 beta + 1).
    labels = np.zeros(4000, np.int64)
    for beta in (0.5, 5.0):
        drawn = [[len(p) / 4000 for p in Dirichlet(beta=beta, minimum=0)(labels, 4, seed)] for seed in range(300)]
        shares = np.array(drawn)
        np.testing.assert_allclose(shares.mean(0), 0.25, atol=0.05)
        np.testing.assert_allclose(shares.var(), 3 / 16 / (4 * beta + 1), rtol=0.2)


def test_dirichlet_leaves_no_client_without_samples():
    for seed in range(5):
        assert min(len(p) for p in Dirichlet(beta=0.1)(LABELS, 10, seed)) >= 1
        assert min(len(p) for p in Dirichlet(beta=0.5, minimum=25)(LABELS, 10, seed)) >= 25
    # Without the promise a small beta does leave some.
    assert any(min(len(p) for p in Dirichlet(beta=0.01, minimum=0)(LABELS, 10, seed)) == 0 for seed in range(5))


def test_dirichlet_treats_all_clients_alike():
    # With a tiny beta about three of four clients get nothing of a class; the last one no less often than the first.
    labels, split = np.zeros(600, np.int64), Dirichlet(beta=0.02, minimum=0)
    sizes = np.array([[len(part) for part in split(labels, 10, seed)] for seed in range(300)])
    empty = (sizes == 0).mean(0)
    assert empty[:9].min() > 0.6
    assert abs(empty[9] - empty[:9].mean()) < 0.12  # four standard deviations


def test_dirichlet_gives_up_with_advice(monkeypatch):
    monkeypatch.setattr(partition_module, "_REDRAWS", 50)
    with pytest.raises(ConfigurationError, match=r"beta=0\.001 .* minimum=1 samples .* 50 draws; take a larger beta"):
        Dirichlet(beta=0.001)(LABELS, 30, seed=0)


@pytest.mark.parametrize("beta", [0, 0.0, -1, float("nan"), float("inf"), "1", None, True])
def test_beta_is_checked(beta):
    with pytest.raises(ConfigurationError, match="beta must be a finite number and > 0"):
        Dirichlet(beta=beta)


@pytest.mark.parametrize("minimum", [-1, 1.5, "1"])
def test_minimum_is_checked(minimum):
    with pytest.raises(ConfigurationError, match="minimum must be an integer >= 0"):
        Dirichlet(beta=1.0, minimum=minimum)


def test_minimum_must_be_possible():
    with pytest.raises(ConfigurationError, match="minimum must be at most samples / clients = 60; got minimum=61"):
        Dirichlet(beta=1.0, minimum=61)(LABELS, 10, seed=0)
    with pytest.raises(ConfigurationError, match="got minimum=10"):
        Dirichlet(beta=1.0, balanced=True)(LABELS, 100, seed=0)


BALANCED = [(beta, seed) for beta in (0.05, 0.5, 5.0) for seed in range(40)]


def classes_after_full(labels, parts, clients):
    """Largest piece that a client got of a class after it held its share, the last client's apart."""
    table = histogram(labels, parts)
    held = np.cumsum(table, axis=1)[:, :-1]
    late = np.where(held >= len(labels) / clients, table[:, 1:], 0)
    return late[:-1].max(), late[-1].max()


def test_balanced_clients_get_no_class_after_they_are_full():
    full = 0
    for beta, seed in BALANCED:
        parts = Dirichlet(beta=beta, balanced=True)(LABELS, 10, seed)
        assert min(len(part) for part in parts) >= 10
        # At most the share, less one, and then one class of 60.
        assert max(len(part) for part in parts) <= 60 + 59
        full += any(len(part) > 60 for part in parts)
        assert classes_after_full(LABELS, parts, 10)[0] == 0
    assert full > 50
    # Without the rule they do.
    free = [classes_after_full(LABELS, Dirichlet(beta=beta)(LABELS, 10, seed), 10)[0] for beta, seed in BALANCED]
    assert max(free) > 5


def test_the_last_balanced_client_gets_no_class_after_it_is_full_either():
    for beta, seed in BALANCED:
        parts = Dirichlet(beta=beta, balanced=True)(LABELS, 10, seed)
        assert classes_after_full(LABELS, parts, 10)[1] == 0


def test_balanced_sizes_differ_less():
    def deviation(balanced):
        sizes = [[len(p) for p in Dirichlet(beta=0.3, balanced=balanced)(LABELS, 10, s)] for s in range(20)]
        return np.std(sizes)

    assert deviation(True) < 0.8 * deviation(False)


def test_equal_partitions_draw_alike():
    assert Dirichlet(beta=1) == Dirichlet(beta=1.0)
    assert same(Dirichlet(beta=1)(LABELS, 10, seed=0), Dirichlet(beta=1.0)(LABELS, 10, seed=0))


def test_balanced_is_true_or_false():
    with pytest.raises(ConfigurationError, match="balanced"):
        Dirichlet(beta=1.0, balanced="no")


# -- by label ------------------------------------------------------------------------------------


def test_gamma_similarity_deals_a_share_at_random_and_cuts_the_rest_by_label():
    even = histogram(LABELS, partitions.parse("gamma_similarity(gamma=1.0)")(LABELS, 10, 0))
    assert (even.sum(1) == 60).all()
    assert even.max() < 20  # about 6 of each class
    sorted_ones = histogram(LABELS, partitions.parse("gamma_similarity(gamma=0.0)")(LABELS, 10, 0))
    np.testing.assert_array_equal(sorted_ones, 60 * np.eye(10, dtype=int))
    # Of 600 samples 396 are dealt at random, 39 or 40 to each; the other 20 or 21 follow the labels.
    mixed = histogram(LABELS, partitions.parse("gamma_similarity(gamma=0.66)")(LABELS, 10, 0))
    assert set(mixed.sum(1)) <= {59, 60, 61}
    assert (mixed.argmax(1) == np.arange(10)).mean() >= 0.8
    for client in range(10):
        near = mixed[client, max(client - 1, 0) : client + 2].sum()
        assert near >= 20 + 4


def test_gamma_similarity_leaves_idle_clients_one_sample():
    parts = partitions.parse("gamma_similarity(gamma=0.0, idle=3)")(LABELS, 13, 0)
    assert_split(parts, len(LABELS), 13)
    assert [len(part) for part in parts[10:]] == [1, 1, 1]
    assert {len(part) for part in parts[:10]} == {59, 60}
    with pytest.raises(ConfigurationError, match="idle must be below the number of clients, 3; got idle=3"):
        partitions.parse("gamma_similarity(gamma=0.5, idle=3)")(LABELS, 3, 0)


def test_by_label_with_as_many_clients_as_classes():
    parts = ByLabel()(LABELS, 10, seed=0)
    for client, part in enumerate(parts):
        np.testing.assert_array_equal(part, np.flatnonzero(np.equal(LABELS, client)))


def test_by_label_with_fewer_clients():
    # Classes 0, 4, 8 to client 0; 1, 5, 9 to 1; 2, 6 to 2; 3, 7 to 3.
    table = histogram(LABELS, ByLabel()(LABELS, 4, seed=0))
    assert [np.flatnonzero(row).tolist() for row in table] == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    assert set(table.flatten()) == {0, 60}


def test_by_label_with_more_clients():
    # Clients 0, 10, 20 share class 0, ..., 4, 14, 24 class 4; classes 5 to 9 have two clients each.
    table = histogram(LABELS, ByLabel()(LABELS, 25, seed=0))
    assert [int(row.argmax()) for row in table] == [client % 10 for client in range(25)]
    assert [int(row.sum()) for row in table] == [20 if client % 10 < 5 else 30 for client in range(25)]
    assert ((table > 0).sum(1) == 1).all()
    # Who of them has which samples is drawn.
    assert not same(ByLabel()(LABELS, 25, seed=0), ByLabel()(LABELS, 25, seed=1))


def test_by_label_without_enough_samples_leaves_clients_empty():
    # Class 1 has one sample for clients 1 and 3: as the class says, one of them goes without.
    parts = ByLabel()(np.array([0, 0, 0, 1]), 4, seed=0)
    assert sorted(len(part) for part in parts) == [0, 1, 1, 2]


# -- k classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("deal", ["random", "turns"])
@pytest.mark.parametrize(("clients", "k"), [(10, 1), (10, 3), (4, 3), (20, 3), (7, 10)])
def test_k_classes_per_client(clients, k, deal):
    table = histogram(LABELS, KClasses(k=k, deal=deal)(LABELS, clients, seed=0))
    assert ((table > 0).sum(1) == k).all()
    holders = (table > 0).sum(0)
    assert holders.max() - holders.min() <= 1
    for column in table.T:  # a class is split evenly over its holders
        held = column[column > 0]
        assert held.max() - held.min() <= 1


def test_k_classes_are_drawn():
    tables = [histogram(LABELS, KClasses(k=2)(LABELS, 10, seed)) > 0 for seed in range(5)]
    assert any(not np.array_equal(tables[0], table) for table in tables[1:])


def test_no_client_has_a_twin_by_its_number():
    # Dealt in turns, clients i and i + 10 of 20 hold the same three classes, whatever the seed; at random seldom.
    def twins(deal):
        found = 0
        for seed in range(20):
            held = histogram(LABELS, KClasses(k=3, deal=deal)(LABELS, 20, seed)) > 0
            found += int((held[:10] == held[10:]).all(1).sum())
        return found

    assert twins("turns") == 200
    assert twins("random") < 10  # 1 / 120 of 200 are expected


def test_every_even_deal_is_about_as_likely():
    # Two of four classes each, for two clients: 4 over 2 = 6 deals.
    labels = np.repeat(np.arange(4), 5)
    found = Counter(tuple((histogram(labels, KClasses(k=2)(labels, 2, seed))[0] > 0).tolist()) for seed in range(600))
    assert len(found) == 6
    assert 70 < min(found.values()) <= max(found.values()) < 130  # 100 each, standard deviation 9


@pytest.mark.parametrize(
    ("k", "clients", "words"),
    [
        (11, 10, "k must be at most the number of classes, 10; got k=11"),
        (3, 3, "clients \\* k must be at least the number of classes, 10, .* got clients=3, k=3"),
    ],
)
def test_k_classes_that_do_not_fit(k, clients, words):
    with pytest.raises(ConfigurationError, match=words):
        KClasses(k=k)(LABELS, clients, seed=0)


@pytest.mark.parametrize("k", [0, -1, 1.0, None])
def test_k_is_checked(k):
    with pytest.raises(ConfigurationError, match="k must be an integer >= 1"):
        KClasses(k=k)


def test_without_others_the_draw_is_what_it_was_before_there_were_any():
    sums = [int(part.sum()) for part in KClasses(k=3, deal="turns")(LABELS, 10, seed=3)]
    assert sums == [17569, 16214, 17878, 16988, 18937, 16866, 18421, 19081, 20319, 17427]
    assert same(KClasses(k=3)(LABELS, 10, seed=3), KClasses(k=3, others=0)(LABELS, 10, seed=3))


@pytest.mark.parametrize(("clients", "k", "others"), [(24, 3, 4), (10, 2, 5), (6, 10, 1)])
def test_others_hold_their_share_of_every_class(clients, k, others):
    parts = KClasses(k=k, others=others)(LABELS, clients, seed=1)
    assert_split(parts, len(LABELS), clients)
    table = histogram(LABELS, parts)
    assert ((table[:-others] > 0).sum(1) == k).all()
    holders = (table[:-others] > 0).sum(0)
    assert holders.max() - holders.min() <= 1
    assert (table[-others:].sum(0) == round(60 * others / clients)).all()
    assert (table[-others:].max(0) - table[-others:].min(0) <= 1).all()
    assert (table[-others:] > 0).all()


@pytest.mark.parametrize(
    ("k", "others", "words"),
    [
        (3, 10, "others must be below clients=10; got others=10"),
        (1, 1, r"\(clients - others\) \* k must be at least .* 10, .* got clients=10, others=1, k=1"),
    ],
)
def test_others_that_do_not_fit(k, others, words):
    with pytest.raises(ConfigurationError, match=words):
        KClasses(k=k, others=others)(LABELS, 10, seed=0)
    with pytest.raises(ConfigurationError, match="others must be an integer >= 0"):
        KClasses(k=k, others=-1)


# -- shards --------------------------------------------------------------------------------------


def test_shards_by_hand():
    # Six samples of each of two classes, sorted, in four shards of three: two of one class each, so a client of two
    # shards has three samples of each class or six of one.
    labels = np.array([0, 1] * 6)
    seen = []
    for seed in range(200):
        table = histogram(labels, Shards()(labels, 2, seed))
        assert table.sum(1).tolist() == [6, 6]
        seen.append(tuple(table[0].tolist()))
    assert set(seen) == {(6, 0), (3, 3), (0, 6)}
    # Of the six hands of two out of four shards, four have one of each class.
    assert 0.5 < seen.count((3, 3)) / 200 < 0.83


def test_shards_hold_few_classes():
    # A shard of 30 sorted samples, 60 per class, has one class; a client has at most two.
    table = histogram(LABELS, Shards(per_client=2)(LABELS, 10, seed=0))
    assert ((table > 0).sum(1) <= 2).all()
    assert (table.sum(1) == 60).all()
    assert skew(histogram(LABELS, Shards(per_client=20)(LABELS, 10, seed=0))) < 0.4


def test_shards_need_as_many_samples():
    assert min(len(part) for part in Shards(per_client=6)(LABELS, 100, seed=0)) == 6
    with pytest.raises(ConfigurationError, match=r"clients \* per_client .* number of samples, 600; got 700"):
        Shards(per_client=7)(LABELS, 100, seed=0)


@pytest.mark.parametrize("per_client", [0, -2, 0.5])
def test_per_client_is_checked(per_client):
    with pytest.raises(ConfigurationError, match="per_client must be an integer >= 1"):
        Shards(per_client=per_client)


@settings(deadline=None, database=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=4, max_size=40), st.integers(0, 9))
def test_label_distances_are_total_variation(pairs, shift):
    labels = np.array([label for label, _ in pairs]) + shift  # classes need not begin at 0
    held = sorted({client for _, client in pairs})
    parts = [np.array([i for i, (_, client) in enumerate(pairs) if client == wanted]) for wanted in held]
    expected = []
    for part in parts:
        total = 0.0
        for label in set(labels.tolist()):
            total += abs(np.mean(labels[part] == label) - np.mean(labels == label))
        expected.append(total / 2)
    np.testing.assert_allclose(label_distances(labels, parts), expected, atol=1e-12)


def test_label_distances_tell_partitions_apart():
    labels = np.arange(1000) % 10
    far, near, same = (
        label_distances(labels, partitions.parse(text)(labels, 10, 0)).mean()
        for text in ("by_label", "dirichlet(beta=1.0)", "iid")
    )
    assert far == pytest.approx(0.9)
    assert far > near > 2 * same > 0


# -- sizes and owners ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.integers(0, 400), st.integers(0, 9))
def test_sizes_are_in_proportion(shares, more, seed):
    samples = len(shares) + more
    parts = Sizes(shares=shares)(np.zeros(samples, int), len(shares), seed)
    assert_split(parts, samples, len(shares))
    sizes, wanted = np.array([len(part) for part in parts]), np.array(shares) / sum(shares)
    assert sizes.min() >= 1
    # One sample each, and the others in proportion, to the nearest whole number below or above.
    assert np.abs(sizes - 1 - wanted * more).max() < 1 + 1e-9


def test_hospitals_have_their_sizes():
    shares = [0.6, 51.7, 10.2, 37.5]
    parts = partitions.parse(f"sizes(shares={shares})")(np.zeros(10_000, int), 4, 0)
    assert [len(part) for part in parts] == [61, 5169, 1021, 3749]
    with pytest.raises(ConfigurationError, match="one number per client; got 4 shares for clients=5"):
        Sizes(shares=shares)(np.zeros(10_000, int), 5, 0)
    with pytest.raises(ConfigurationError, match="shares"):
        Sizes(shares=[1.0, 0.0])


def test_natural_follows_the_owners():
    owners = np.random.default_rng(0).integers(0, 12, 200)
    labels = np.zeros(200, int)
    parts = Natural()(labels, 12, 0, owners)
    assert all(set(owners[part]) == {client} for client, part in enumerate(parts))
    fewer = Natural()(labels, 5, 0, owners)
    assert_split(fewer, 200, 5)
    held = [set(owners[part].tolist()) for part in fewer]
    assert sorted(map(len, held)) == [2, 2, 2, 3, 3]
    assert sum(map(len, held)) == 12  # whole owners
    assert same(fewer, Natural()(labels, 5, 0, owners))
    assert not same(fewer, Natural()(labels, 5, 1, owners))
    with pytest.raises(ConfigurationError, match="at most the number of owners, 12; got clients=13"):
        Natural()(labels, 13, 0, owners)
    with pytest.raises(ConfigurationError, match="must say who its training samples came from"):
        Natural()(labels, 5, 0)


# -- the order of samples, and the split of Peng et al. ---------------------------------------------


def test_by_class_is_the_same_split_in_another_order():
    ascending, listed = (
        Dirichlet(beta=1.0, balanced=True, order=order)(LABELS, 10, 4) for order in ("ascending", "by_class")
    )
    assert same(ascending, [np.sort(part) for part in listed])
    assert not same(ascending, listed)
    for part in listed:
        assert (np.diff(LABELS[part]) >= 0).all()  # class after class
        first = part[LABELS[part] == LABELS[part[0]]]
        assert len(first) < 3 or not (np.diff(first) > 0).all()  # shuffled within


def test_consecutive_samples_are_nearly_of_one_class_where_lists_run_class_after_class():
    """What made centered clipping 3 to 5 points too good in the mild columns: batches that mixed all classes."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 6000))

    def classes_in_a_batch(order):
        parts = Dirichlet(beta=1.0, balanced=True, order=order)(labels, 10, 0)
        return np.mean([len(set(labels[p[at : at + 32]])) for p in parts for at in range(0, len(p) - 32, 97)])

    assert classes_in_a_batch("by_class") < 1.2
    assert classes_in_a_batch("ascending") > 3


def naive_sizes(labels, clients, beta, minimum):
    """The sizes that the published procedure gives, by the facts alone: seed 1, rounded down, full clients skipped."""
    draw = np.random.RandomState(1)
    while True:
        counts = np.zeros((clients, labels.max() + 1), int)
        for k in range(labels.max() + 1):
            size = int((labels == k).sum())
            p = draw.dirichlet([beta] * clients)
            p = np.array([share if counts[c].sum() < len(labels) / clients else 0 for c, share in enumerate(p)])
            ends = [int(x) for x in np.cumsum(p / p.sum()) * size]
            ends[-1] = size
            counts[:, k] = np.diff([0, *ends])
        if counts.sum(1).min() >= minimum:
            return counts


@pytest.mark.parametrize(("beta", "minimum"), [(1.0, 10), (0.1, 20), (5.0, 10)])
def test_peng2025_has_the_sizes_of_the_published_procedure(beta, minimum):
    split = Peng2025(beta=beta, minimum=minimum)
    parts, again = split(LABELS, 10, 0), split(LABELS, 10, 7)
    assert len(parts) == 10
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
    np.testing.assert_array_equal(histogram(LABELS, parts), naive_sizes(LABELS, 10, beta, minimum))
    assert (histogram(LABELS, parts) == histogram(LABELS, again)).all()  # one draw of who is poisoned
    assert not same(parts, again)
    assert all((np.diff(LABELS[part]) >= 0).all() for part in parts)
    with pytest.raises(ConfigurationError, match="minimum must be at most"):
        Peng2025(beta=beta, minimum=61)(LABELS, 10, 0)
