"""The one rule for names of runs and corpora: they become file names and parts of URLs."""

import re
from typing import Final

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{0,63}$"
NAME_RULE: Final = "1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"


def is_name(text: str) -> bool:
    return re.fullmatch(NAME_PATTERN, text) is not None
