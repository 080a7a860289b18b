"""Where assistant turns stand in a rendered conversation, told from its token ids alone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pact_plugins.chat.format import ChatFormat
from pact_plugins.chat.template import common, spans


@dataclass(frozen=True)
class Turn:
    """An assistant turn.

    Attributes:
        opening, start: where its opening begins, and where it does itself.
        stop: behind its end.
        trailed: behind what the template writes behind that, too.
    """

    opening: int
    start: int
    stop: int
    trailed: int


def assistant_turns(ids: npt.NDArray[np.int64], chat: ChatFormat) -> list[Turn]:
    """The assistant turns, in order. An opening's text inside a turn opens none.

    Args:
        ids: [L] of the conversation, as `ChatFormat.unjoined` gives them.
    """
    openings = chat.openings or (chat.header,)
    opened = dict(spans(ids, openings))
    if not opened:
        return []
    length = len(ids)
    others = {*opened, *(place for place, _ in spans(ids, chat.users))}
    # An end belongs to its turn. What opens a tool's result or a user's turn does not, and may follow at once.
    stops = [int(i) + 1 for i in np.flatnonzero(np.isin(ids, chat.ends))] if chat.ends else sorted(others)
    marked = spans(ids, (user for user in chat.users if not chat.markers.isdisjoint(user)))
    results = np.flatnonzero(np.isin(ids, chat.results)).tolist()
    following = sorted([*results, *(place for place, _ in marked if ids[place] not in chat.ends)])
    turns: list[Turn] = []
    to_open = sorted(opened.items(), reverse=True)
    while to_open:
        place, start = to_open.pop()
        if turns and place < turns[-1].stop:
            continue
        ended, followed = bisect_right(stops, start), bisect_left(following, start)
        stop = min([*stops[ended : ended + 1], *following[followed : followed + 1], length])
        trailer = common(chat.trailer, tuple(ids[stop : stop + len(chat.trailer)].tolist()))
        trailed = stop + len(trailer) if chat.ends else length
        turns.append(Turn(place, start, stop, trailed))
        goes_on = chat.unopened and trailed < length and ids[trailed] not in chat.markers
        if goes_on and trailed not in others:
            to_open.append((trailed, trailed))
    return turns
