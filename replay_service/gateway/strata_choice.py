"""The strata that somebody asks for, by number or by domain."""

from difflib import get_close_matches
from typing import Final

from replay_service.errors import InvalidRequest
from replay_service.sampling.partition import Partition

_MOST_NAMED: Final = 10


def strata_in(partition: Partition, stratum: int | None = None, domain: str | None = None) -> tuple[int, ...] | None:
    """The strata that are asked for; None: all.

    Raises:
        InvalidRequest: when there is no such stratum or domain, or the stratum is of another domain.
    """
    if stratum is not None and stratum >= partition.num_strata:
        raise InvalidRequest(f"there is no stratum {stratum}; the corpus has {partition.num_strata}, from 0")
    if domain is None:
        return None if stratum is None else (stratum,)
    group = group_of(partition, domain)
    mine = tuple(range(group * partition.num_quantiles, (group + 1) * partition.num_quantiles))
    if stratum is None:
        return mine
    if stratum not in mine:
        raise InvalidRequest(f"stratum {stratum} is not of domain {domain!r}; leave one of the two out")
    return (stratum,)


def group_of(partition: Partition, domain: str) -> int:
    """The number of a domain; raises InvalidRequest when the corpus has none of this name."""
    if domain in partition.groups:
        return partition.groups.index(domain)
    named = get_close_matches(domain[:200], partition.groups, _MOST_NAMED) or partition.groups[:_MOST_NAMED]
    raise InvalidRequest(f"the corpus has no domain {domain[:200]!r}; it has {', '.join(named)}")
