"""Copies of mapped memory, and what is done where the system does not permit them."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from replay_service.corpus.reading.copying import can_copy
from tests.corpus.worlds import random_rows, write_corpus

SYSTEM_CALLS = {"x86_64": 311, "aarch64": 271}

FORBIDDEN = """
import ctypes, struct, sys
from pathlib import Path
import numpy as np
libc = ctypes.CDLL(None, use_errno=True)
# A filter of system calls: load the number; if it is that of process_vm_writev, EPERM; else allow it.
filter_ = b"".join(struct.pack("HBBI", *each) for each in (
    (0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[2])), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)))
code = ctypes.create_string_buffer(filter_)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
from replay_service.corpus.reading.reader import Corpus
for _ in range(2):
    print(Corpus(Path(sys.argv[1])).rows(np.arange(40)).input_ids.sum())
"""


def test_this_system_can_copy() -> None:
    assert can_copy()


@pytest.mark.skipif(platform.machine() not in SYSTEM_CALLS, reason="the number of the system call is not known")
def test_where_copies_are_forbidden_a_corpus_is_read_and_the_log_warns_once(tmp_path: Path) -> None:
    rows = random_rows(40)
    write_corpus(tmp_path / "rows", [rows])
    command = [sys.executable, "-c", FORBIDDEN, str(tmp_path / "rows"), str(SYSTEM_CALLS[platform.machine()])]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = told.stdout.splitlines()
    assert [line for line in lines if line.isdigit()] == [str(rows.input_ids.sum())] * 2
    assert sum("process_vm_writev" in line for line in [*lines, *told.stderr.splitlines()]) == 1
