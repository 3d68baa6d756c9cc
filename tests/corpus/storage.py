"""Storage that is far away: filesystems that count what is asked of them, and fail when they are told to."""

import threading
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from pyarrow import fs


class CountedFile:
    """A file of which every read counts."""

    closed = False

    def __init__(self, file: Any, on_read: Callable[[int, int], None]) -> None:
        self._file = file
        self._on_read = on_read

    def read(self, num_bytes: int = -1) -> bytes:
        self._on_read(self._file.tell(), num_bytes)
        content: bytes = self._file.read(num_bytes)
        return content

    def seek(self, position: int, whence: int = 0) -> int:
        return int(self._file.seek(position, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()


class CountedFileSystem(fs.FileSystemHandler):  # type: ignore[misc]
    """What it reads of another filesystem, it writes down."""

    def __init__(self, below: fs.FileSystem) -> None:
        self._below = below
        self._lock = threading.Lock()
        self.reads: list[tuple[str, int, int]] = []
        """(path, position, bytes) of each request for a part of a file."""
        self.fail: Callable[[str], None] = lambda path: None
        """Called with the path before each request; may raise, as a network does."""

    def _on_read(self, path: str, position: int, num_bytes: int) -> None:
        self.fail(path)
        with self._lock:
            self.reads.append((path, position, num_bytes))

    def get_type_name(self) -> str:
        return "counted"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        for path in paths:
            self.fail(path)
        return list(self._below.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        self.fail(selector.base_dir)
        return list(self._below.get_file_info(selector))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        self.fail(path)
        return self._below.open_input_stream(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.fail(path)
        file = self._below.open_input_file(path)
        return pa.PythonFile(
            CountedFile(file, lambda position, num_bytes: self._on_read(path, position, num_bytes)), mode="r"
        )

    def _refuse(self, *_: object, **__: object) -> None:
        raise NotImplementedError("what is served is only read")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_output_stream = open_append_stream = _refuse
