"""Entries that look alike are read alike: one regular expression finds all fields where they were found before.

A bank writes a million entries in a dozen shapes. The shape of an entry is its markup without the texts. A shape is
understood once, by the plan; then an entry of the same shape is one call into C. Only the plainest XML has a shape:
elements of the message's own namespace prefix, no attribute but Ccy, no entity, comment, CDATA section, processing
instruction or declaration. Everything else goes through the parser, which gives the same fields.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import itemgetter

from reperform.ingest.iso20022_plan import DETAIL_FIELDS, ENTRY_FIELDS, TEXT_FIELDS, Node

without_texts = re.compile(">[^<>]+<").sub
texts_of = re.compile(">([^<>]*)<").findall
_MOST_SHAPES = 4096
_LONGEST_SHAPE = 20_000
_DEEPEST = 50
_MOST_RECENT = 6
_NEVER = "(?:(?!)())?"  # a group for fields without a place: it never takes part, and so gives None
Pick = Callable[[list[str | None]], tuple[str | None, ...]]


@dataclass(frozen=True)
class Shape:
    """Where the fields of an entry stand among the texts between its tags.

    Args:
        tail: what is added to the texts: attributes, which are part of the markup, and None for fields without a place.
        joins: places whose texts are joined and added before the tail.
        whole: all fields, of an entry with at most one detail.
        entry: the entry's own fields.
        details: the fields of each detail.
        n_tags: how many tags it has.
        pattern: matches entries of this shape, in any currency; None where details are several.
        groups: the pattern's group for each field.
        joined: fields whose texts are joined, by their place, with their groups.
    """

    tail: list[str | None]
    joins: list[list[int]]
    whole: Pick
    entry: Pick
    details: list[Pick]
    n_tags: int
    pattern: re.Pattern[str] | None
    groups: tuple[int, ...]
    joined: dict[int, list[int]]

    def gathered(self, texts: list[str | None]) -> list[str | None]:
        """The texts of an entry with the joined ones and the tail."""
        for places in self.joins:
            texts.append(_join(texts[place] for place in places))
        texts += self.tail
        return texts


def _join(texts: Iterable[str | None]) -> str:
    return " ".join([text for text in texts if text])


def _joined(
    fields: tuple[str | None, ...], found: re.Match[str], joined: dict[int, list[int]]
) -> tuple[str | None, ...]:
    made = list(fields)
    for place, groups in joined.items():
        made[place] = _join(found.group(*groups))
    return tuple(made)


class Shapes:
    """The shapes of one file's entries.

    Args:
        record: the plan of an entry.
        prefix: the namespace prefix with its colon, or nothing.
    """

    def __init__(self, record: Node, prefix: str) -> None:
        self._record = record
        self._tag = re.compile(
            rf"<(?P<close>/?){re.escape(prefix)}(?P<name>[A-Za-z_][\w.-]*)"
            r'(?: Ccy="(?P<currency>[A-Z]{3})")?(?P<empty>/?)>',
            re.ASCII,
        )
        self._known: dict[str, Shape | None] = {}
        self._recent: dict[int, list[Shape]] = {}  # by how many tags they have, the last one first

    def fields(self, entry: str) -> tuple[str | None, ...] | None:
        """All fields of an entry that has the shape of a recent one; None where it has not."""
        recent = self._recent.get(entry.count("<"), [])
        for place, shape in enumerate(recent):
            found = shape.pattern.fullmatch(entry) if shape.pattern is not None else None
            if found is not None:
                if place:
                    recent.insert(0, recent.pop(place))
                fields: tuple[str | None, ...] = found.group(*shape.groups)
                return _joined(fields, found, shape.joined) if shape.joined else fields
        return None

    def remember(self, shape: Shape) -> None:
        """Try this shape first from now on."""
        if shape.pattern is not None:
            recent = self._recent.setdefault(shape.n_tags, [])
            recent.insert(0, shape)
            del recent[_MOST_RECENT:]

    def of(self, markup: str) -> Shape | None:
        """The shape of an entry's markup; None where it takes the parser."""
        try:
            return self._known[markup]
        except KeyError:
            shape = self._understood(markup) if len(markup) <= _LONGEST_SHAPE else None
            if len(self._known) < _MOST_SHAPES:
                self._known[markup] = shape
            return shape

    def _understood(self, markup: str) -> Shape | None:
        walk = _Walk(self._record)
        place, at = 0, 0
        while at < len(markup):
            tag = self._tag.match(markup, at)
            if tag is None or not walk.step(tag, place):
                return None
            place, at = place + 1, tag.end()
        return walk.shape() if not walk.open else None


@dataclass
class _Level:
    """Fields that were found: places of texts, and of tags whose attribute counts."""

    places: dict[str, list[int]] = field(default_factory=dict)
    attributes: dict[str, int] = field(default_factory=dict)


class _Walk:
    """One walk over the tags of an entry, in step with its plan."""

    def __init__(self, record: Node) -> None:
        self._record = record
        self.open: list[tuple[str, Node, int]] = []
        self._tags: list[re.Match[str]] = []
        self._entry = _Level()
        self._details: list[_Level] = []
        self._levels: list[_Level] = []
        self._is_leaf = False

    def step(self, tag: re.Match[str], place: int) -> bool:
        name = tag["name"]
        self._tags.append(tag)
        if tag["close"]:
            if tag["empty"] or tag["currency"] or not self.open or self.open[-1][0] != name:
                return False
            return self._end(place)
        if (place > 0 and not self.open) or len(self.open) > _DEEPEST:
            return False  # a second entry, or one that nests too deep for a shape
        node = self.open[-1][1].local.get(name, Node()) if self.open else self._record
        self.open.append((name, node, place))
        if node.begins:
            self._begin(node)
        self._is_leaf = True
        return self._end(None) if tag["empty"] else True

    def _begin(self, node: Node) -> None:
        level = self._entry if node is self._record else _Level()
        if level is not self._entry:
            self._details.append(level)
        self._levels.append(level)

    def _end(self, place: int | None) -> bool:
        _, node, begin = self.open.pop()
        if self._is_leaf and node.text and self._levels:
            # The text of an element stands right before its end tag; an empty one has none.
            found = self._levels[-1].places.setdefault(node.text, [])
            if place is not None and (node.is_every or not found):
                found.append(place - 1)
            elif not node.is_every and not found:
                found.append(-1)  # an empty first one counts as well
            if node.currency and self._tags[begin]["currency"]:
                self._levels[-1].attributes.setdefault(node.currency, begin)
        if node.begins:
            self._levels.pop()
        self._is_leaf = False
        return True

    def shape(self) -> Shape:
        n_texts = len(self._tags) - 1
        joins: list[list[int]] = []
        tail: list[str | None] = []
        levels = [self._entry, *self._details]
        n_joins = sum(len(places) > 1 for level in levels for places in level.places.values())

        def index(level: _Level, name: str) -> int:
            if name in level.attributes:
                tail.append(self._tags[level.attributes[name]]["currency"])
                return n_texts + n_joins + len(tail) - 1
            places = level.places.get(name, [])
            if len(places) <= 1:
                return next(iter(places), -1)
            joins.append(places)
            return n_texts + len(joins) - 1

        found = [{name: index(level, name) for name in TEXT_FIELDS} for level in levels]
        one = found[0] | ({name: found[1][name] for name in DETAIL_FIELDS} if len(found) > 1 else {})
        pattern, groups, joined = self._pattern() if len(levels) <= 2 else (None, (), {})  # noqa: PLR2004  # the entry and its only detail
        return Shape(
            tail=[*tail, None],
            joins=joins,
            whole=itemgetter(*(one[name] for name in TEXT_FIELDS)),
            entry=itemgetter(*(found[0][name] for name in ENTRY_FIELDS)),
            details=[itemgetter(*(places[name] for name in DETAIL_FIELDS)) for places in found[1:]],
            n_tags=len(self._tags),
            pattern=pattern,
            groups=groups,
            joined=joined,
        )

    def _pattern(self) -> tuple[re.Pattern[str], tuple[int, ...], dict[int, list[int]]]:
        """The tags as a regular expression with groups for the fields that were found."""
        levels = [self._entry, *self._details]
        texts = {
            place: name for level in levels for name, places in level.places.items() for place in places if place >= 0
        }
        attributes = {place: name for level in levels for name, place in level.attributes.items()}
        parts: list[str] = []
        groups: dict[str, list[int]] = {}
        n = 0
        for place, tag in enumerate(self._tags):
            part = re.escape(tag[0])
            if place in attributes:
                n += 1
                groups.setdefault(attributes[place], []).append(n)
                part = part.replace(f'"{tag["currency"]}"', '"([A-Z]{3})"')
            if place in texts:
                n += 1
                groups.setdefault(texts[place], []).append(n)
            parts += [part, "([^<>]*+)" if place in texts else "[^<>]*+"]
        first = tuple(groups.get(name, [n + 1])[0] for name in TEXT_FIELDS)
        joined = {place: groups[name] for place, name in enumerate(TEXT_FIELDS) if len(groups.get(name, [])) > 1}
        return re.compile("".join(parts[:-1]) + _NEVER), first, joined
