from concurrent.futures import ThreadPoolExecutor

from replay_service.ledger.recently_used import RecentlyUsed


def test_the_least_recently_used_is_dropped() -> None:
    kept = RecentlyUsed[list[str]](2, list)
    first, second = kept.get("first"), kept.get("second")
    assert kept.get("first") is first
    kept.get("third")
    assert kept.get("first") is first
    assert kept.get("second") is not second


def test_threads_get_one_value_of_a_name() -> None:
    kept = RecentlyUsed[object](2, object)
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(kept.get, ["name"] * 100))) == 1
