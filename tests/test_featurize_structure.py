"""KPIs 7 and 13 on the graph of a day or week, worked out by hand on small graphs and held against plain searches."""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import featurize
from reperform.featurize import motifs
from reperform.featurize.kernels import F64, I64
from reperform.featurize.motifs import Adjacency
from reperform.featurize.payments import graph_of
from reperform.featurize.propagation import groups
from tests.featurize_tables import accounts, at, calendar, column, features, labels, stage, transactions

DAY = 24


def undirected(edges: Iterable[tuple[int, int]], nodes: int) -> Adjacency:
    ends = np.array(sorted(edges), np.int64).reshape(-1, 2)
    pair = np.arange(len(ends))
    return Adjacency.of(
        np.concatenate([ends[:, 0], ends[:, 1]]), np.concatenate([ends[:, 1], ends[:, 0]]),
        np.concatenate([pair, pair]), nodes,
    )  # fmt: skip


def directed(edges: Iterable[tuple[int, int]], nodes: int) -> Adjacency:
    ends = np.array(sorted(edges), np.int64).reshape(-1, 2)
    return Adjacency.of(ends[:, 0], ends[:, 1], np.arange(len(ends)), nodes)


SQUARE_WITH_TAIL = [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4)]  # a triangle, and a tail of two
graphs = st.integers(2, 9).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.sampled_from(list(combinations(range(n), 2)))))
)


# --- kernels ---------------------------------------------------------------------------------------------------------


def test_a_triangle_is_a_two_core_and_its_tail_a_one_core() -> None:
    graph = undirected(SQUARE_WITH_TAIL, 6)
    assert motifs.core_numbers(graph.starts, graph.others).tolist() == [2, 2, 2, 1, 1, 0]
    assert motifs.triangles(graph.starts, graph.others, 100)[0].tolist() == [1, 1, 1, 0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(graphs)
def test_cores_and_triangles_are_those_of_their_definitions(drawn: tuple[int, set[tuple[int, int]]]) -> None:
    nodes, edges = drawn
    near: dict[int, set[int]] = {n: {a + b - n for a, b in edges if n in {a, b}} for n in range(nodes)}
    graph = undirected(edges, nodes)
    found = motifs.core_numbers(graph.starts, graph.others)
    for k in range(nodes):
        left = set(range(nodes))
        while drop := {n for n in left if len(near[n] & left) < k}:
            left -= drop
        assert left == {n for n in range(nodes) if found[n] >= k}
    expected = [sum(b in near[a] for a, b in combinations(sorted(near[n]), 2)) for n in range(nodes)]
    assert motifs.triangles(graph.starts, graph.others, 100)[0].tolist() == expected


def test_steps_to_the_nearest_bad_node() -> None:
    graph = undirected(SQUARE_WITH_TAIL, 6)
    bad = np.array([False, False, False, False, True, False])
    assert motifs.hops(graph.starts, graph.others, bad, 100)[0].tolist() == [3, 3, 2, 1, 0, 3]


def test_a_search_that_was_cut_says_so() -> None:
    star = undirected([(0, n) for n in range(1, 6)], 6)
    steps, cut, looked = motifs.hops(star.starts, star.others, np.arange(6) == 0, 3)
    assert steps.tolist() == [0, 1, 1, 1, 3, 3]
    assert (cut.tolist(), looked) == ([1, 0, 0, 0, 1, 1], 3 + 3)


def scattered(amounts_on: list[int], *, reverse: bool = False, least: int = 2, cap: int = 100) -> list[list[int]]:
    """A source (0) gives 100 to each of 1 … n, who pay the target (n + 1)."""
    n = len(amounts_on)
    edges = [(0, k) for k in range(1, n + 1)] + [(k, n + 1) for k in range(1, n + 1)]
    graph = directed(edges, n + 2)
    cents = np.array([100] * n + amounts_on, np.int64)
    time = np.array([1] * n + [2] * n, np.int64) * (-1 if reverse else 1)
    motif, width, cut, _ = motifs.scatter_gather(
        graph.starts, graph.others, graph.pairs, cents, time, time, 0.2, least, cap
    )
    return [motif.tolist(), width.tolist(), cut.tolist()]


def test_scatter_gather_counts_those_who_pass_on_what_they_got() -> None:
    assert scattered([100, 80, 125]) == [[1, 1, 1, 1, 1], [3, 3, 3, 3, 3], [0] * 5]
    assert scattered([100, 79, 100])[:2] == [[1, 1, 0, 1, 1], [2, 2, 0, 2, 2]]
    assert scattered([100, 79, 50])[0] == [0] * 5
    assert scattered([100, 100, 100], reverse=True)[0] == [0] * 5  # the target was paid before the source gave
    assert scattered([100, 100, 100], least=4)[0] == [0] * 5
    assert scattered([100, 100, 100], cap=2) == [[1, 1, 1, 0, 1], [2, 2, 2, 0, 2], [1, 0, 0, 0, 0]]


def test_a_hub_with_100_000_counterparties_costs_no_more_than_its_edges() -> None:
    """Of work, not of time: edges looked at."""
    n, cap = 100_000, 1000
    star = undirected([(0, k) for k in range(1, n + 1)], n + 1)
    assert motifs.core_numbers(star.starts, star.others).max() == 1
    assert motifs.triangles(star.starts, star.others, cap)[2] <= 2 * n
    _, cut, looked = motifs.hops(star.starts, star.others, np.arange(n + 1) == 5, cap)
    assert looked == 1 + cap
    assert cut[0] == 1
    # Everybody pays the hub, and the hub pays everybody: without a cap that is 10^10 paths.
    both_ways = directed([(0, k) for k in range(1, n + 1)] + [(k, 0) for k in range(1, n + 1)], n + 1)
    ones = np.ones(2 * n, np.int64)
    found, _, cut, looked = motifs.scatter_gather(
        both_ways.starts, both_ways.others, both_ways.pairs, ones, ones, 2 * ones, 0.2, 1, cap
    )
    assert cut[0] == 1
    assert looked <= 2 * (cap * cap + cap)
    assert found.sum() > 0


def power_iteration(edges: dict[tuple[int, int], int], teleport: F64, steps: int = 400) -> F64:
    """Dense and plain."""
    nodes = len(teleport)
    matrix = np.zeros((nodes, nodes))
    for (a, b), weight in edges.items():
        matrix[a, b] += weight
    out = matrix.sum(axis=1, keepdims=True)
    step = np.divide(matrix, out, out=np.zeros_like(matrix), where=out > 0)
    rank = teleport.copy()
    for _ in range(steps):
        loose = rank[out[:, 0] == 0].sum()
        rank = 0.15 * teleport + 0.85 * (rank @ step + loose / nodes)
    return rank


def test_pagerank_is_the_fixed_point_of_its_definition() -> None:
    edges = {(0, 1): 3, (0, 2): 1, (1, 2): 2, (2, 0): 1, (3, 2): 5}  # nobody pays 3; node 4 is no part of it
    graph = directed(edges, 5)
    weight: I64 = np.array([edges[e] for e in sorted(edges)], np.int64)
    found = motifs.pagerank(graph.starts, graph.others, graph.pairs, weight, 0.85, 1e-12, 1000)
    assert found[:4] == pytest.approx(power_iteration(edges, np.full(4, 0.25)), abs=1e-9)
    assert np.isnan(found[4])
    dangling = directed([(0, 1), (0, 2)], 3)
    got = motifs.pagerank(
        dangling.starts, dangling.others, dangling.pairs, np.array([1, 1], np.int64), 0.85, 1e-12, 1000
    )
    assert got == pytest.approx(power_iteration({(0, 1): 1, (0, 2): 1}, np.full(3, 1 / 3)), abs=1e-9)


def test_personalised_ranks_are_the_fixed_point_for_every_start() -> None:
    pairs = {(0, 1): 2, (1, 2): 1, (2, 3): 4, (0, 2): 1}
    graph = undirected(pairs, 4)
    weight = np.array([pairs[e] for e in sorted(pairs)], float)[graph.pairs]
    teleport = np.stack([np.full(4, 0.25), np.array([1.0, 0, 0, 0])], axis=1)
    got = motifs.personalised_ranks(graph.starts, graph.others, weight, teleport, 0.85, 1e-12, 1000)
    symmetric = pairs | {(b, a): w for (a, b), w in pairs.items()}
    for k in range(2):
        assert got[:, k] == pytest.approx(power_iteration(symmetric, teleport[:, k]), abs=1e-9)
    assert got.sum(axis=0) == pytest.approx([1.0, 1.0])


# --- KPI 13 of the day -----------------------------------------------------------------------------------------------

OURS = accounts(*({"account_id": name} for name in ("a", "b", "m1", "m2", "s", "z")))


def pays(payer: str, payee: str, hours: float, amount: float = 100.0, **more: object) -> dict[str, object]:
    return {"hours": hours, "account_id": payer, "counterparty_id": payee, "amount": amount} | more


def look(name: str, hours: float) -> dict[str, object]:
    """A row that asks."""
    return pays(name, "shop", hours, 1.0)


def test_a_day_sees_what_was_known_when_it_began() -> None:
    rows = transactions(
        pays("s", "m1", 1), pays("s", "m2", 2), pays("m1", "z", 3), pays("m2", "z", 4, 90.0),
        look("s", 5), look("s", 25),
    )  # fmt: skip
    got = features(rows, "network_structure", of=OURS)
    assert column(got, "network_scatter_gather_n_30d") == [0, 0, 0, 0, 0, 1]
    assert column(got, "network_scatter_gather_width_30d")[-1] == 2
    assert column(got, "network_core_30d") == [0, 0, 0, 0, 0, 2]  # s, m1, z, m2 are a ring
    assert column(got, "network_structure_n_30d") == [0, 0, 0, 0, 0, 3]  # with the shop
    assert column(got, "network_structure_truncated_30d")[-1] == 0


def test_a_late_payment_is_no_edge_until_the_day_after_it_arrived() -> None:
    late = [pays("s", "m1", 1), pays("s", "m2", 2), pays("m1", "z", 3), pays("m2", "z", 4, late=DAY)]
    got = features(transactions(*late, look("s", 25), look("s", 49)), "network_structure", of=OURS)
    assert column(got, "network_scatter_gather_n_30d")[-2:] == [0, 1]


def test_both_records_of_one_payment_are_one_edge() -> None:
    rows = transactions(pays("a", "b", 1), {**pays("b", "a", 1), "direction": "in"}, look("a", 25), look("b", 26))
    assert column(features(rows, "network_structure", of=OURS), "network_structure_n_30d")[-2:] == [1, 1]


def test_distance_to_a_known_anomaly_begins_with_the_day_after_its_label() -> None:
    rows = transactions(
        pays("z", "p", 1), pays("b", "p", 2), pays("b", "q", 3), look("z", 30), look("b", 31),
        pays("a", "q", 54), pays("a", "q", 79),
    )  # fmt: skip
    known = labels((0, True, 20.0))
    got = features(rows, "network_structure", labelled=known, of=OURS)
    # z is bad; p dealt with z; b dealt with p; q dealt with b; a did so on the third day.
    assert column(got, "network_bad_distance_30d") == [3, 3, 3, 0, 2, 3, 3]
    assert column(got, "counterparty_bad_distance_30d") == [3, 3, 3, 3, 3, 3, 3]
    # The shop, which z and b both visited, is one step from z by the third day.
    more = transactions(look("z", 30), look("b", 31), look("b", 55))
    got = features(more, "network_structure", labelled=labels((0, True, 40.0)), of=OURS)
    assert column(got, "counterparty_bad_distance_30d") == [3, 3, 1]
    assert column(got, "network_bad_distance_30d") == [3, 3, 2]


def test_a_distance_that_may_be_too_long_is_marked_on_either_side() -> None:
    fans = [pays(name, "shop", k) for k, name in enumerate(("a", "b", "m1", "m2", "z"))]
    known, more = labels((4, True, 20.0)), {"most_edges": 3}  # z is bad; of the shop's five visitors three are followed
    asking = transactions(*fans, look("m2", 25), look("a", 26), pays("s", "m2", 27))
    got = features(asking, "network_structure", labelled=known, of=OURS, network_structure=more)
    assert column(got, "network_bad_distance_30d")[5:] == [3, 2, 3]
    assert column(got, "counterparty_bad_distance_30d")[5:] == [1, 1, 3]
    assert column(got, "network_structure_truncated_30d")[5:] == [1, 1, 1]  # the shop was cut, and may lead to m2
    assert column(got, "network_structure_truncated_30d")[:5] == [0] * 5


def test_without_labels_distance_is_unknown_and_not_far() -> None:
    got = features(transactions(look("a", 1), look("a", 30)), "network_structure", of=OURS)
    assert column(got, "network_bad_distance_30d") == [None, None]
    assert column(got, "counterparty_bad_distance_30d") == [None, None]


def test_egonet_residuals_are_distances_from_the_line_of_training() -> None:
    rows = transactions(
        pays("a", "b", 1), pays("b", "z", 2), pays("a", "z", 3), pays("a", "p", 4), look("a", 25), look("z", 26)
    )
    fitted = {"network_structure": {"slope": 1.0, "intercept": 0.5, "egonets": 20}}
    got = column(features(rows, "network_structure", of=OURS, fitted=fitted), "network_egonet_residual_30d")
    # a with b, z and p: 4 nodes, 4 edges; z with a and b: 3 nodes, 3 edges.
    assert got[:4] == [None] * 4
    assert got[4:] == pytest.approx([np.log(4) - 0.5 - np.log(4), np.log(3) - 0.5 - np.log(3)])


def test_the_line_of_egonets_is_learned_from_complete_days_of_training() -> None:
    stars = [pays("a", f"p{k}", 1 + k / 10) for k in range(12)]
    stars += [pays(name, f"only-{name}", 2) for name in ("b", "m1", "s", "z")]
    rows = transactions(*stars, *[pays("z", "a", 24 * 9 + k) for k in range(30)])
    made = featurize.featurize(rows, OURS, labels(), stage("network_structure"), calendar(9))
    # Accounts with edges known by day 9 and day 2 (weekly): a (13 nodes, 12 edges), the others 2 nodes, 1 edge.
    fitted = made.fitted["network_structure"]
    assert fitted["egonets"] == 5 * 2
    slope = (np.log(12) - np.log(1)) / (np.log(13) - np.log(2))
    assert fitted["slope"] == pytest.approx(slope)
    assert fitted["intercept"] == pytest.approx(-slope * np.log(2))


def test_rank_change_compares_with_a_week_earlier() -> None:
    early = [pays("a", "b", 1), pays("b", "z", 2)]
    rows = transactions(*early, pays("m1", "a", 24 * 7 + 1), look("a", 24 * 8 + 1))
    got = column(features(rows, "network_structure", of=OURS), "network_rank_change_30d")
    chain = power_iteration({(0, 1): 1, (1, 2): 1}, np.full(3, 1 / 3))
    longer = power_iteration({(0, 1): 1, (1, 2): 1, (3, 0): 1}, np.full(4, 1 / 4))
    assert got[:3] == [None] * 3
    assert got[3] == pytest.approx(np.log(longer[0] * 4) - np.log(chain[0] * 3), abs=1e-4)


# --- KPI 7, propagation ----------------------------------------------------------------------------------------------

WEEK = 7 * DAY


def test_propagated_risk_is_the_ratio_of_two_ranks_on_the_graph_of_the_week_before() -> None:
    rows = transactions(pays("z", "p", 1), pays("b", "p", 2), pays("b", "q", 3), pays("a", "q", 4), look("b", WEEK + 1))
    split = {"folds": 1000}  # all in groups of their own
    got = features(rows, "propagated_risk", labelled=labels((0, True, 20.0)), of=OURS, propagated_risk=split)
    names = ["a", "b", "p", "q", "z"]
    edges = {(4, 2): 1, (1, 2): 1, (1, 3): 1, (0, 3): 1}
    symmetric = edges | {(b, a): w for (a, b), w in edges.items()}
    start = np.array([name == "z" for name in names], float)
    expected = power_iteration(symmetric, start) / power_iteration(symmetric, np.full(5, 0.2))
    values = column(got, "account_propagated_risk_90d")
    assert values[:4] == [None] * 4  # the first week began before anything had happened
    assert values[4] == pytest.approx(expected[1], rel=1e-3)
    assert column(got, "counterparty_propagated_risk_90d")[4] is None  # the shop had no edge yet
    assert column(got, "propagated_risk_n_90d") == [0, 0, 0, 0, 1]


def test_no_account_is_its_own_seed() -> None:
    rows = transactions(pays("z", "p", 1), pays("b", "p", 2), look("z", WEEK + 1), look("b", WEEK + 2))
    only_z = features(rows, "propagated_risk", labelled=labels((0, True, 20.0)), of=OURS)
    assert column(only_z, "account_propagated_risk_90d")[2] is None
    assert column(only_z, "propagated_risk_n_90d")[2] == 0


def test_a_label_counts_from_the_week_after_it_was_given() -> None:
    rows = transactions(pays("z", "p", 1), pays("b", "p", 2), *[look("b", WEEK * k + 1) for k in (1, 2, 3)])
    late = features(rows, "propagated_risk", labelled=labels((0, True, WEEK * 1.5)), of=OURS)
    assert column(late, "propagated_risk_n_90d")[2:] == [0, 1, 1]


def test_groups_follow_from_names_alone() -> None:
    def by_name(*names: str) -> dict[str, int]:
        rows = transactions(*[pays(name, "p", k) for k, name in enumerate(names)])
        ledger = featurize.ledger_of(rows, OURS, labels(), stage(), calendar())
        return dict(zip(sorted({*names, "p"}), groups(ledger, 4).tolist(), strict=True))

    few, more = by_name("a", "b"), by_name("a", "aa", "b", "z")
    assert all(more[name] == group for name, group in few.items())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abz"), st.sampled_from("pq"), st.integers(0, 20)), min_size=2, max_size=15))
def test_what_comes_later_changes_no_earlier_value(drawn: list[tuple[str, str, int]]) -> None:
    rows = transactions(*[pays(a, p, 24 * day + 1) for a, p, day in sorted(drawn, key=lambda d: d[2])])
    cut = at(24 * 10)
    earlier = rows.filter(pl.col("booked_at") < cut)
    known = labels((0, True, 60.0))
    whole, part = (
        features(r, "network_structure", "propagated_risk", labelled=known, of=OURS, fitted={
            "network_structure": {"slope": 1.0, "intercept": 0.0, "egonets": 10}, "propagated_risk": {},
        })
        for r in (rows, earlier)
    )  # fmt: skip
    assert whole.filter(pl.col("booked_at") < cut).equals(part)


def test_every_payment_is_in_the_graph_once_whoever_reports_it() -> None:
    rows = transactions(
        pays("a", "b", 1), {**pays("b", "a", 1), "direction": "in"}, pays("a", "a", 2), pays("a", "c", 3)
    )
    graph = graph_of(featurize.ledger_of(rows, OURS, labels(), stage(), calendar()))
    assert (graph.pair >= 0).tolist().count(True) == 2
    assert graph_of(featurize.ledger_of(rows.clear(), OURS, labels(), stage(), calendar())).nodes == 0


# --- scatter-gather as it closes -------------------------------------------------------------------------------------


def gathered(*rows: dict[str, object]) -> list[float | None]:
    return column(features(transactions(*rows), "network_graph", of=OURS), "network_gather_width_30d")


def test_a_gather_is_seen_as_its_payments_arrive() -> None:
    scatter = [pays("s", f"m{k}", k, 100.0 + k) for k in (1, 2, 3)]
    gather = [pays(f"m{k}", "z", 10 + k, 95.0) for k in (1, 2, 3)]
    assert gathered(*scatter, *gather) == [0, 0, 0, 0, 2, 3]


def test_who_passes_on_another_amount_or_got_nothing_or_got_it_later_is_no_intermediate() -> None:
    scatter = [pays("s", "m1", 1), pays("s", "m2", 2), pays("s", "b", 15)]
    others = [pays("m1", "z", 10, 70.0), pays("a", "z", 11), pays("b", "z", 12)]
    assert gathered(*scatter, *others, pays("m2", "z", 20))[-1] == 0


def test_different_sources_are_no_common_source() -> None:
    assert gathered(pays("s", "m1", 1), pays("a", "m2", 2), pays("m1", "z", 3), pays("m2", "z", 4)) == [0] * 4


def test_money_that_goes_back_to_its_source_is_no_gather() -> None:
    assert gathered(pays("s", "m1", 1), pays("s", "m2", 2), pays("m1", "s", 3), pays("m2", "s", 4)) == [0] * 4


def test_one_intermediate_that_pays_twice_is_one() -> None:
    twice = [pays("m1", "z", 3), pays("m1", "z", 4)]
    assert gathered(pays("s", "m1", 1), pays("s", "m2", 2), *twice, pays("m2", "z", 5)) == [0, 0, 0, 0, 2]


def test_what_arrives_late_is_no_part_of_a_gather_before() -> None:
    late = [pays("s", "m1", 1, late=8), pays("s", "m2", 2), pays("m1", "z", 3)]
    assert gathered(*late, pays("m2", "z", 4)) == [0, 0, 0, 0]
    assert gathered(*late, pays("m2", "z", 10)) == [0, 0, 0, 2]


def test_a_row_without_counterparty_gathers_nothing() -> None:
    assert gathered({"hours": 1, "counterparty_id": None}) == [None]


def test_the_search_for_intermediates_stops_at_its_bound() -> None:
    """A hub that 100,000 payers pay, each of whom got money from one source."""
    n = 100_000
    source, hub = 0, n + 1
    payer = np.concatenate([np.full(n, source), np.arange(1, n + 1)])
    payee = np.concatenate([np.arange(1, n + 1), np.full(n, hub)])
    time, cents = np.arange(2 * n, dtype=np.int64), np.full(2 * n, 100, np.int64)
    order = np.lexsort((time, payee))
    starts = np.searchsorted(payee[order], np.arange(n + 3))
    width, cut, looked = motifs.gathering(starts, order, time, time + 1, cents, payer, payee, 1 << 40, 0.2, 1000)
    assert looked.max() <= 1001
    assert (width[n], width[n + 1], cut[n + 1]) == (0, 2, 0)
    assert cut[-1] == 1
    assert width.max() < 1000
