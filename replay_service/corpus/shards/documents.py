"""Documents: what a row of a shard gives, or why it gives nothing."""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_service.language.pieces import PIECE_CHARACTERS, pieces_of, with_last

NO_COLUMN = "no such column in this row"
NOT_A_STRING = "the text is not a string"
BLANK = "the text is blank"
HALF_A_PAIR = "half a surrogate pair"
NOT_UTF8 = "not UTF-8"
NOT_JSON = "not a JSON object"
NOT_TOKENS = "the token ids are not a list of non-negative integers"
NO_TOKENS = "the list of token ids is empty"
NO_GROUP = "no value in the group column"
NOT_A_TENSOR = "the inputs are not numbers of one shape"
NOT_FINITE = "the inputs are not all finite, or too large for 32 bits"
NOT_A_LABEL = "the label is not a whole number"
NO_MEMBER = "a sample with neither text nor json"
LINK = "a link, whose content stands elsewhere"

EXCERPT_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Columns:
    """Where in a row the document stands.

    Attributes:
        text: column of the text.
        tokens: column of ready-made token ids, lists of integers; when it is given, `text` is not read.
        domain: column of the domain; where it is empty, and without it, the shard's place tells.
        group: column by whose values the corpus is partitioned instead of by domains.
        inputs: column of tensors to classify; when it is given, neither `text` nor `tokens` is read.
        label: column of labels, whole numbers, of what is to be classified.
    """

    text: str = "text"
    tokens: str | None = None
    domain: str | None = None
    group: str | None = None
    inputs: str | None = None
    label: str | None = None

    def roles(self) -> dict[str, str]:
        """The columns to read, by what they are for."""
        content = {"text": self.text} if self.tokens is None else {"tokens": self.tokens}
        if self.inputs is not None:
            content = {"inputs": self.inputs}
        labels = {"domain": self.domain, "group": self.group, "label": self.label}
        return content | {role: name for role, name in labels.items() if name is not None}


class Document(NamedTuple):
    """One document.

    Attributes:
        domain: the domain.
        group: the value of the group column; None when there is no such column.
        content: the text, or the ready-made token ids, int64 [at least 1].
        begins, ends: whether the document begins, and ends, with this content; the pieces of a long one come one
            after the other.
    """

    domain: str
    group: str | None
    content: str | NDArray[np.int64]
    begins: bool = True
    ends: bool = True


class Labelled(NamedTuple):
    """One sample to classify.

    Attributes:
        domain: the domain.
        group: the value of the group column; None when there is no such column.
        content: the text, ready-made token ids, int64 [at least 1], or a tensor of numbers of at most 32 bits.
        label: its class.
        row: number of its row within the shard, from 0.
    """

    domain: str
    group: str | None
    content: str | NDArray[Any]
    label: int
    row: int


class SetAside(NamedTuple):
    """A row that gives no document.

    Attributes:
        row: number of the line, the table row or the tar sample within the shard, from 0.
        reason: one of the reasons above.
        excerpt: at most 80 printable characters of what stands there.
    """

    row: int
    reason: str
    excerpt: str


class Row(NamedTuple):
    """A row as it was read: its number in the shard, and what stands in its columns. Bytes are text in UTF-8.

    A long text comes in several rows of one number, of which one begins it and one ends it. `position` says how many
    bytes of the file have been read by then; of a table, about how many.
    """

    number: int
    fields: Mapping[str, Any]
    begins: bool = True
    ends: bool = True
    position: int = 0


class _UnusableError(Exception):
    """A value that makes its row unusable, and why."""

    def __init__(self, reason: str, value: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.value = value


def document_of(row: Row, columns: Columns, domain: str) -> Document | Labelled | SetAside:
    """The document of a row, or its sample where there is a column of labels; `domain` is that of its shard."""
    try:
        for name in columns.roles().values():
            if name not in row.fields:
                raise _UnusableError(NO_COLUMN, row.fields)
        document = Document(
            (_label(row.fields[columns.domain]) if columns.domain is not None else "") or domain,
            _group(row.fields[columns.group]) if columns.group is not None else None,
            _content(row, columns),
            row.begins,
            row.ends,
        )
        if columns.label is None:
            return document
        return Labelled(*document[:3], label=_class(row.fields[columns.label]), row=row.number)
    except _UnusableError as error:
        return set_aside(row.number, error.reason, error.value)


def in_pieces(document: Document) -> Iterator[Document]:
    """A document as pieces that tokenizers take at once; a short one, or one of ready-made ids, as it is."""
    if not isinstance(document.content, str) or len(document.content) <= PIECE_CHARACTERS:
        yield document
        return
    begins = document.begins
    for text, is_last in with_last(pieces_of(document.content)):
        yield document._replace(content=text, begins=begins, ends=is_last and document.ends)
        begins = False


def is_of_another_type(row: Row, columns: Columns) -> bool:
    """Whether the content of a row is there, and of no type that could be used."""
    try:
        _content(row, columns)
    except _UnusableError as error:
        return error.value is not None and error.reason in (NOT_A_STRING, NOT_TOKENS, NOT_A_TENSOR)
    except KeyError:
        return False
    return False


def set_aside(row: int, reason: str, value: object) -> SetAside:
    return SetAside(row, reason, _excerpt(value))


def decoded(content: bytes) -> str | None:
    """The text that UTF-8 bytes spell, without a byte order mark; None when they are not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def token_ids(value: object) -> NDArray[np.int64]:
    """A list or an array of non-negative integers as int64 [at least 1]."""
    if isinstance(value, np.ndarray):
        ids = value.astype(np.int64) if value.dtype.kind in "iu" and value.ndim == 1 else None
    else:
        ids = _list_ids(value)
    if ids is None or (ids < 0).any():
        raise _UnusableError(NOT_TOKENS, value)
    if not len(ids):
        raise _UnusableError(NO_TOKENS, value)
    return ids


def tensor_of(value: object) -> NDArray[Any]:
    """Numbers in one shape as an array; wide ones, of 64 bits, as the same of 32."""
    try:
        found = value if isinstance(value, np.ndarray) else np.array(value)
    except (ValueError, OverflowError):
        raise _UnusableError(NOT_A_TENSOR, value) from None
    if found.dtype.kind not in "biuf" or not found.ndim or not found.size:
        raise _UnusableError(NOT_A_TENSOR, value)
    tensor = found.astype(_NARROW.get(found.dtype.str[1:], found.dtype), copy=False)
    with np.errstate(over="ignore"):
        is_lost = tensor.dtype.kind in "iu" and tensor.dtype != found.dtype and not np.array_equal(tensor, found)
    if is_lost or not np.isfinite(tensor).all():
        raise _UnusableError(NOT_FINITE, value)
    return tensor


_NARROW: Final = {"f8": np.float32, "i8": np.int32, "u8": np.uint32, "b1": np.uint8}


def _content(row: Row, columns: Columns) -> str | NDArray[Any]:
    if columns.inputs is not None:
        return tensor_of(row.fields[columns.inputs])
    if columns.tokens is not None:
        return token_ids(row.fields[columns.tokens])
    value = row.fields[columns.text]
    return _text(value) if row.begins and row.ends else _encodable(value)


def _class(value: object) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise _UnusableError(NOT_A_LABEL, value)
    return int(value)


def _list_ids(value: object) -> NDArray[np.int64] | None:
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        return None
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError:
        return None


def _text(value: object) -> str:
    text = _encodable(value)
    if not text.strip():
        raise _UnusableError(BLANK, text)
    return text


def _encodable(value: object) -> str:
    """The string, unless it holds half a surrogate pair, which no tokenizer and no table takes."""
    text = decoded(value) if isinstance(value, bytes) else value
    if text is None and value is not None:
        raise _UnusableError(NOT_UTF8, value)
    if not isinstance(text, str):
        raise _UnusableError(NOT_A_STRING, value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _UnusableError(HALF_A_PAIR, text) from None
    return text


def _label(value: object) -> str:
    """A domain or group as a string; an empty one for none."""
    if value is None:
        return ""
    return _encodable(value if isinstance(value, str | bytes) else str(value))


def _group(value: object) -> str:
    group = _label(value)
    if not group:
        raise _UnusableError(NO_GROUP, value)
    return group


def _excerpt(value: object) -> str:
    if isinstance(value, bytes):
        value = value[: 4 * EXCERPT_CHARACTERS].decode(errors="backslashreplace")
    text = value[:EXCERPT_CHARACTERS] if isinstance(value, str) else reprlib.repr(value)
    printed = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return printed[:EXCERPT_CHARACTERS]
