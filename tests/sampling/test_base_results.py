import numpy as np

from replay_service.sampling.base_results import BaseResults

BASE = BaseResults(np.array([1.5, 0.0, np.nan]), np.array([3, 0, 0]))


def test_a_report_tells_something_of_a_readable_sample_with_predictions() -> None:
    assert BASE.measured(np.array([1, 7, 7])).tolist() == [True, True, False]
    assert BASE.measured(np.array([0, 0, 0])).tolist() == [False, False, False]


def test_a_sample_gains_at_most_what_the_base_model_got_wrong() -> None:
    assert BASE.too_many_gains(np.array([3, 0, 0])).tolist() == [False, False, False]
    assert BASE.too_many_gains(np.array([4, 1, -1])).tolist() == [True, True, False]
