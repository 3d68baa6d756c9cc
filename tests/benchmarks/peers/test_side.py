import sys
from pathlib import Path

import pytest

from tests.benchmarks.peers import turns
from tests.benchmarks.peers.__main__ import PEERS, compared
from tests.benchmarks.peers.environments import Environments
from tests.benchmarks.peers.side import running_side

COUNTING = """
import time
from turns import Way, answers, serve_turns

class Client:
    def take(self):
        time.sleep(0.002)
        return 64
    def report(self):
        pass
    def close(self):
        pass

class Failing(Client):
    def report(self):
        raise ValueError("the table is gone")

with answers() as told:
    print("what a library says")
    ways = {"one": Way(lambda n: [Client()] * n, time.process_time), "failing": Way(lambda n: [Failing()], lambda: 0.0)}
    serve_turns(ways, ["made up 1.0"], told)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(Path(turns.__file__).parent)!r})\n{COUNTING}")
    return path


def test_a_side_tells_its_versions_and_what_each_turn_gave(script: Path, tmp_path: Path) -> None:
    with running_side([sys.executable, str(script)], tmp_path / "log") as side:
        assert side.versions == ["made up 1.0"]
        for num_clients in (1, 3):
            turn = side.turn("one", num_clients, 0.5)
            assert turn.rate > 0
            assert 0.002 <= turn.p50 <= turn.p99


def test_a_side_that_fails_says_why(script: Path, tmp_path: Path) -> None:
    with (
        running_side([sys.executable, str(script)], tmp_path / "log") as side,
        pytest.raises(RuntimeError, match="the table is gone"),
    ):
        side.turn("failing", 1, 0.5)


def test_a_way_whose_side_is_not_there_has_no_line(script: Path, tmp_path: Path) -> None:
    names = ["one step a request", "8 steps a request", "32 steps a request", "relaxed"]
    made = "\n    ways |= {name: ways['one'] for name in " + str(names) + "}\n    serve_turns"
    script.write_text(script.read_text().replace("\n    serve_turns", made))
    with running_side([sys.executable, str(script)], tmp_path / "log") as side:
        table = compared({"ours": side}, [2], 0.3, 1).splitlines()
    assert [line.split(" | ")[1] for line in table[2:]] == [
        *(f"ours, {name}" for name in names[:3]),
        "ours, 32 steps, relaxed",
    ]


@pytest.mark.parametrize("peer", PEERS)
def test_an_environment_counts_only_with_the_pins_of_today(peer: str, tmp_path: Path) -> None:
    environments = Environments(tmp_path)
    assert not environments.is_prepared(peer)
    (tmp_path / peer).mkdir()
    (tmp_path / peer / "prepared.txt").write_text("numpy==1.0\n")
    assert not environments.is_prepared(peer)
