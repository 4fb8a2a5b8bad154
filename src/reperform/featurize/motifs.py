"""Sweeps over the payment graph of one moment, compiled: cores, triangles, scatter-gather, distance, PageRank.

A graph is what had happened and was known when a day began. Every search is bounded: of a node with more edges than the
cap only the first are followed, in the order of names, and the node is marked as truncated. Kernels that search return
how many edges they looked at, so that a test can hold the bound against a hub.
"""

# ruff: noqa: C901, PLR0912, PLR0915, PLR0917  # compiled functions take arguments by position, and a search over a graph is one loop

from dataclasses import dataclass

import numpy as np

from reperform.featurize.kernels import F64, I64, Mask, kernel

BEYOND = 3  # distance of what is not within two steps


@kernel
def linked(
    pair: I64, cents: I64, time: I64, known: I64, first: int, end: int, moment: int, starts: I64, others: I64
) -> tuple[I64, I64, I64, I64, I64, I64]:
    """Pairs of payer and payee in rows `first` to `end` that were known by a moment; time and memory go with these.

    Args:
        pair: by row, the place in `others`; -1 is no edge.
        cents: by row.
        time: by row, ascending.
        known: by row.
        first: row.
        end: row after the last.
        moment: microseconds.
        starts: where each payer's payees of all times begin.
        others: payees of all times.

    Returns:
        Where each payer's payees begin; payees; and for each of them payments, hundredths, time of the first, time of
        the last.
    """
    place = np.zeros(len(others), np.int32)
    pairs = 0
    for row in range(first, end):
        at = pair[row]
        if at >= 0 and known[row] <= moment:
            pairs += place[at] == 0
            place[at] = 1
    kept_starts, kept = np.zeros(len(starts), np.int64), np.empty(pairs, np.int64)
    n = 0
    for node in range(len(starts) - 1):
        for entry in range(starts[node], starts[node + 1]):
            if place[entry]:
                kept[n], place[entry] = others[entry], n
                n += 1
        kept_starts[node + 1] = n
    count, total = np.zeros(pairs, np.int64), np.zeros(pairs, np.int64)
    earliest, latest = np.zeros(pairs, np.int64), np.zeros(pairs, np.int64)
    for row in range(first, end):
        if pair[row] < 0 or known[row] > moment:
            continue
        at = np.int64(place[pair[row]])
        if count[at] == 0:
            earliest[at] = time[row]
        latest[at] = time[row]
        count[at] += 1
        total[at] += cents[row]
    return kept_starts, kept, count, total, earliest, latest


@kernel
def either_way(starts: I64, others: I64, weight: I64) -> tuple[I64, I64, I64]:
    """Neighbours of each node, whoever pays, in order: where each node begins, its neighbours, sums of the weights."""
    nodes = len(starts) - 1
    into = np.zeros(nodes + 1, np.int64)
    for other in others:
        into[other + 1] += 1
    for node in range(nodes):
        into[node + 1] += into[node]
    sources, given, filled = np.empty(len(others), np.int64), np.empty(len(others), np.int64), into[:-1].copy()
    for node in range(nodes):
        for entry in range(starts[node], starts[node + 1]):
            at = filled[others[entry]]
            sources[at], given[at] = node, weight[entry]
            filled[others[entry]] += 1
    both_starts, both = np.zeros(nodes + 1, np.int64), np.empty(2 * len(others), np.int64)
    total = np.empty(2 * len(others), np.int64)
    n = 0
    for node in range(nodes):
        left, right = starts[node], into[node]
        while left < starts[node + 1] or right < into[node + 1]:
            paid = others[left] if left < starts[node + 1] else nodes
            payer = sources[right] if right < into[node + 1] else nodes
            both[n], total[n] = min(paid, payer), 0
            if paid <= payer:
                total[n] += weight[left]
                left += 1
            if payer <= paid:
                total[n] += given[right]
                right += 1
            n += 1
        both_starts[node + 1] = n
    return both_starts, both[:n], total[:n]


@kernel
def core_numbers(starts: I64, neighbours: I64) -> I64:
    """Largest k such that a node lies in a part of the graph where all have k neighbours or more.

    Source: Batagelj and Zaversnik (2003), arXiv:cs/0310049; linear in edges.
    """
    nodes = len(starts) - 1
    degree = np.empty(nodes, np.int64)
    highest = 0
    for node in range(nodes):
        degree[node] = starts[node + 1] - starts[node]
        highest = max(highest, degree[node])
    begin = np.zeros(highest + 2, np.int64)
    for node in range(nodes):
        begin[degree[node] + 1] += 1
    for size in range(highest + 1):
        begin[size + 1] += begin[size]
    ordered, place = np.empty(nodes, np.int64), np.empty(nodes, np.int64)
    free = begin[:-1].copy()
    for node in range(nodes):
        place[node] = free[degree[node]]
        ordered[place[node]] = node
        free[degree[node]] += 1
    for at in range(nodes):
        node = ordered[at]
        for entry in range(starts[node], starts[node + 1]):
            other = neighbours[entry]
            if degree[other] > degree[node]:
                # Swap the neighbour with the first node of its degree, then it belongs to the next lower degree.
                head = begin[degree[other]]
                swapped = ordered[head]
                ordered[head], ordered[place[other]] = other, swapped
                place[swapped], place[other] = place[other], head
                begin[degree[other]] += 1
                degree[other] -= 1
    return degree


@kernel
def triangles(starts: I64, neighbours: I64, cap: int) -> tuple[I64, I64, int]:
    """Triangles that each node is part of: edges among its neighbours.

    Every edge is followed from the node with fewer neighbours, so that a hub costs no more than its edges (Chiba and
    Nishizeki 1985, doi:10.1137/0214017: m^1.5 steps at most).

    Returns:
        Per node: triangles, and 1 where a list was cut at the cap; and edges looked at.
    """
    nodes = len(starts) - 1
    found, cut = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    upward_starts, upward = np.zeros(nodes + 1, np.int64), np.empty(len(neighbours) // 2 + 1, np.int64)
    at = 0
    for node in range(nodes):
        own = starts[node + 1] - starts[node]
        for entry in range(starts[node], starts[node + 1]):
            other = neighbours[entry]
            size = starts[other + 1] - starts[other]
            if size > own or (size == own and other > node):
                if at - upward_starts[node] == cap:
                    cut[node] = 1
                    break
                upward[at] = other
                at += 1
        upward_starts[node + 1] = at
    mark = np.full(nodes, -1, np.int64)
    looked = 0
    for node in range(nodes):
        begin, end = upward_starts[node], upward_starts[node + 1]
        for entry in range(begin, end):
            mark[upward[entry]] = node
        for entry in range(begin, end):
            middle = upward[entry]
            for last in range(upward_starts[middle], upward_starts[middle + 1]):
                looked += 1
                if mark[upward[last]] == node:
                    found[node] += 1
                    found[middle] += 1
                    found[upward[last]] += 1
    return found, cut, looked


@kernel
def scatter_gather(
    starts: I64,
    payees: I64,
    pairs: I64,
    cents: I64,
    earliest: I64,
    latest: I64,
    tolerance: float,
    least: int,
    cap: int,
) -> tuple[I64, I64, I64, int]:
    """Money that one node scatters over several others, and that they pass on to one and the same node.

    An intermediate counts if it paid the target after it was first paid by the source, and the two amounts differ by at
    most `tolerance` of the larger one: else every employer whose staff buys at one shop would be one.

    Args:
        starts: where each payer's payees begin.
        payees: by payer.
        pairs: the same as codes of pairs.
        cents: by pair.
        earliest: time of the first payment, by pair.
        latest: time of the last payment, by pair.
        tolerance: share.
        least: intermediates of a motif.
        cap: payees that are followed, and sources from which an intermediate is reached.

    Returns:
        Per node: motifs that it is part of, as source, intermediate or target; most intermediates of one; 1 where a
        list was cut; and edges looked at.
    """
    nodes = len(starts) - 1
    motifs, width, cut = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    reached, stamp, used = np.zeros(nodes, np.int64), np.full(nodes, -1, np.int64), np.zeros(nodes, np.int64)
    touched = np.empty(nodes, np.int64)
    looked = 0
    for source in range(nodes):
        end = min(starts[source + 1], starts[source] + cap)
        if starts[source + 1] > end:
            cut[source] = 1
        if end - starts[source] < least:
            continue
        size, widest = 0, 0
        for tell in range(2):  # first count who reaches each target, then tell the intermediates
            for step in range(starts[source], end):
                middle, given = payees[step], pairs[step]
                last = min(starts[middle + 1], starts[middle] + cap)
                if tell == 0:
                    used[middle] += 1
                    if starts[middle + 1] > last or used[middle] > cap:
                        cut[middle] = 1
                if used[middle] > cap:
                    continue
                for passed_on in range(starts[middle], last):
                    target, paid = payees[passed_on], pairs[passed_on]
                    looked += 1
                    near = abs(cents[given] - cents[paid]) <= tolerance * max(cents[given], cents[paid])
                    # One condition that rarely holds: the processor guesses it, which it cannot do for either alone.
                    if not (near & (latest[paid] > earliest[given]) & (target != source)):
                        continue
                    if tell == 0:
                        if stamp[target] != source:
                            stamp[target], reached[target] = source, 0
                            touched[size] = target
                            size += 1
                        reached[target] += 1
                        widest = max(widest, reached[target])
                    elif reached[target] >= least:
                        motifs[middle] += 1
                        width[middle] = max(width[middle], reached[target])
            if widest < least:
                break
        for place in range(size):
            target = touched[place]
            if reached[target] >= least:
                motifs[source] += 1
                motifs[target] += 1
                width[source] = max(width[source], reached[target])
                width[target] = max(width[target], reached[target])
    return motifs, width, cut, looked


@kernel
def _earlier(time: I64, rows: I64, start: int, end: int, moment: int) -> int:
    """Position after the last of the rows that happened before a moment; they are in order of time."""
    while start < end:
        middle = (start + end) // 2
        if time[rows[middle]] < moment:
            start = middle + 1
        else:
            end = middle
    return start


@kernel
def gathering(
    edge_starts: I64,
    edge_rows: I64,
    time: I64,
    enter: I64,
    cents: I64,
    payer: I64,
    payee: I64,
    window_us: int,
    tolerance: float,
    most_edges: int,
    asks: I64 | None = None,
) -> tuple[I64, I64, I64]:
    """Intermediates through which one source's money reaches the row's payee, when the row is the last such payment.

    The row's payer has got such an amount from a source before. Which others have paid the payee before the row, each
    after having got such an amount from the same source?

    Args:
        edge_starts: where each node's incoming payments begin in `edge_rows`.
        edge_rows: rows per payee in order of time.
        time: microseconds.
        enter: first moment at which others can see each row.
        cents: amounts.
        payer: node that pays; -1 where a side is not named.
        payee: node that is paid.
        window_us: age of the oldest payment.
        tolerance: share by which what an intermediate got may differ from what it passes on.
        most_edges: payments that are looked at per row.
        asks: rows to compute; all of them if not given.

    Returns:
        Per row that asks: intermediates of the source with most of them, the row's payer included, 0 if it is alone; 1
        if the search was cut short; payments looked at.
    """
    asking = np.arange(len(time)) if asks is None else asks
    rows, nodes = len(asking), len(edge_starts) - 1
    width, truncated, looked = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    is_source, found = np.full(nodes, -1, np.int64), np.zeros(nodes, np.int64)
    counted, last = np.full(nodes, -1, np.int64), np.full(nodes, -1, np.int64)
    for asked in range(rows):
        row = asking[asked]
        if payer[row] < 0 or payer[row] == payee[row]:
            continue
        now, oldest = time[row], time[row] - window_us
        sources, cut = 0, False
        own = payer[row]
        at = _earlier(time, edge_rows, edge_starts[own], edge_starts[own + 1], now)
        while at > edge_starts[own] and time[edge_rows[at - 1]] >= oldest:
            at -= 1
            looked[asked] += 1
            if looked[asked] > most_edges:
                cut = True
                break
            given = edge_rows[at]
            if enter[given] > now or abs(cents[given] - cents[row]) > tolerance * cents[row]:
                continue
            if payer[given] != payee[row] and is_source[payer[given]] != row:
                is_source[payer[given]], found[payer[given]], last[payer[given]] = row, 0, own
                sources += 1
        counted[own] = row
        at = _earlier(time, edge_rows, edge_starts[payee[row]], edge_starts[payee[row] + 1], now)
        while sources and not cut and at > edge_starts[payee[row]] and time[edge_rows[at - 1]] >= oldest:
            at -= 1
            looked[asked] += 1
            if looked[asked] > most_edges:
                cut = True
                break
            passed = edge_rows[at]
            middle = payer[passed]
            if enter[passed] > now or counted[middle] == row:
                continue
            before = _earlier(time, edge_rows, edge_starts[middle], edge_starts[middle + 1], time[passed])
            while before > edge_starts[middle] and time[edge_rows[before - 1]] >= oldest:
                before -= 1
                looked[asked] += 1
                if looked[asked] > most_edges:
                    cut = True
                    break
                given = edge_rows[before]
                source = payer[given]
                if enter[given] > now or is_source[source] != row or last[source] == middle:
                    continue
                if abs(cents[given] - cents[passed]) <= tolerance * cents[passed]:
                    found[source] += 1
                    last[source], counted[middle] = middle, row
                    width[asked] = max(width[asked], found[source] + 1)
        truncated[asked] = cut
    return width, truncated, looked


@kernel
def hops(starts: I64, neighbours: I64, is_bad: Mask, cap: int) -> tuple[I64, I64, int]:
    """Steps to the nearest bad node: 0, 1, 2, or `BEYOND`.

    Returns:
        Per node: steps, and 1 where the search from it was cut at the cap, or did not reach it for that reason; and
        edges looked at.
    """
    nodes = len(starts) - 1
    steps, cut, missed = np.full(nodes, 3, np.int64), np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    looked = 0
    for node in range(nodes):
        if is_bad[node]:
            steps[node] = 0
    for step in range(2):
        for node in range(nodes):
            if steps[node] != step:
                continue
            end = min(starts[node + 1], starts[node] + cap)
            if starts[node + 1] > end:
                cut[node] = 1
            for entry in range(starts[node], end):
                looked += 1
                steps[neighbours[entry]] = min(steps[neighbours[entry]], step + 1)
    for node in range(nodes):
        if cut[node]:
            for entry in range(starts[node], starts[node + 1]):
                missed[neighbours[entry]] |= steps[neighbours[entry]] > steps[node] + 1
    return steps, np.maximum(cut, missed), looked


@kernel
def pagerank(starts: I64, others: I64, pairs: I64, weight: I64, damping: float, tolerance: float, most: int) -> F64:
    """PageRank of a directed graph with weights; nodes without any edge are no part of it (NaN).

    Rank without a way on is shared among all nodes. Iterates until the ranks move by less than `tolerance` in sum.

    Source: Page et al. (1999), The PageRank Citation Ranking.
    """
    nodes = len(starts) - 1
    part, out_weight, given = np.zeros(nodes, np.int64), np.zeros(nodes), np.empty(len(others))
    for node in range(nodes):
        for entry in range(starts[node], starts[node + 1]):
            part[node] = part[others[entry]] = 1
            given[entry] = weight[pairs[entry]]
            out_weight[node] += given[entry]
    n = 0
    for node in range(nodes):
        n += part[node]
    rank, following = np.zeros(nodes), np.zeros(nodes)
    for node in range(nodes):
        rank[node] = part[node] / n if n else 0.0
    for _ in range(most):
        loose = 0.0
        for node in range(nodes):
            if part[node] and out_weight[node] == 0:
                loose += rank[node]
        for node in range(nodes):
            following[node] = part[node] * ((1 - damping) + damping * loose) / max(n, 1)
        for node in range(nodes):
            if out_weight[node] > 0:
                share = damping * rank[node] / out_weight[node]
                for entry in range(starts[node], starts[node + 1]):
                    following[others[entry]] += share * given[entry]
        moved = 0.0
        for node in range(nodes):
            moved += abs(following[node] - rank[node])
            rank[node] = following[node]
        if moved < tolerance:
            break
    for node in range(nodes):
        if not part[node]:
            rank[node] = np.nan
    return rank


@kernel
def personalised_ranks(
    starts: I64, others: I64, weight: F64, teleport: F64, damping: float, tolerance: float, most: int
) -> F64:
    """PageRanks of one undirected graph for several starting distributions at once.

    Args:
        starts: where each node's neighbours begin.
        others: neighbours.
        weight: of each entry; both directions of an edge have the same.
        teleport: shape (nodes, distributions), each column adds up to 1; zero for nodes without edges.
        damping: probability of going on.
        tolerance: stop when no distribution moves by more than this in sum.
        most: iterations.

    Returns:
        Shape (nodes, distributions).
    """
    nodes, columns = teleport.shape
    strength = np.zeros(nodes)
    for node in range(nodes):
        for entry in range(starts[node], starts[node + 1]):
            strength[node] += weight[entry]
    rank, share = teleport.copy(), np.zeros((nodes, columns))
    moved, fresh = np.empty(columns), np.empty(columns)
    for _ in range(most):
        for node in range(nodes):
            if strength[node] > 0:
                for column in range(columns):
                    share[node, column] = damping * rank[node, column] / strength[node]
        moved[:] = 0.0
        for node in range(nodes):
            if strength[node] == 0:
                continue
            for column in range(columns):
                fresh[column] = (1 - damping) * teleport[node, column]
            for entry in range(starts[node], starts[node + 1]):
                for column in range(columns):
                    fresh[column] += weight[entry] * share[others[entry], column]
            for column in range(columns):
                moved[column] += abs(fresh[column] - rank[node, column])
                rank[node, column] = fresh[column]
        highest = 0.0
        for column in range(columns):
            highest = max(highest, moved[column])
        if highest < tolerance:
            break
    return rank


@dataclass(frozen=True)
class Adjacency:
    """Who is linked to whom in the whole table: where each node begins, its neighbours, and codes of the pairs."""

    starts: I64
    others: I64
    pairs: I64

    @classmethod
    def of(cls, node: I64, other: I64, pair: I64, nodes: int) -> "Adjacency":
        """Entries in order of node and neighbour."""
        order = np.lexsort((other, node))
        starts = np.searchsorted(node[order], np.arange(nodes + 1))
        return cls(starts, np.ascontiguousarray(other[order]), np.ascontiguousarray(pair[order]))
