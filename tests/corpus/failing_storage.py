"""Object storage in memory, of which only so many more files can be written."""

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FailingFileSystem(MemoryFileSystem):  # type: ignore[misc]
    protocol = "failing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    files_left = 0
    written: ClassVar[list[str]] = []

    @classmethod
    def clear(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.written.clear()

    def open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        if mode == "wb":
            FailingFileSystem.files_left -= 1
            if FailingFileSystem.files_left < 0:
                raise OSError("the quota is used up")
            FailingFileSystem.written.append(path)
        return super().open(path, mode, *arguments, **options)


fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
