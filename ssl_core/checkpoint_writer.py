"""Checkpoints are written beside the training: copied to the host in the step, then by a thread."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor

from . import checkpoints, dist
from .artifacts import atomic_file, sha256_file, write_json
from .errors import HeadwaterError


class Writer:
    """Writes checkpoints in a thread while training goes on; never more than one at a time.

    Every rank has one. Whole tensors are written by rank 0, sharded ones by all ranks.
    """

    def __init__(self, folder: Path, sharded: bool = False) -> None:
        self.folder, self.sharded = folder, sharded
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._host: dict[str, Tensor] = {}
        # Collectives of the thread must not mix with those of the training.
        self._group: Any = td.new_group(backend="gloo") if sharded else None
        folder.mkdir(parents=True, exist_ok=True)
        if dist.rank() == 0:
            checkpoints.sweep(folder)
        dist.barrier()

    def save(self, samples: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Copy ``tensors`` to the host and begin to write them.

        Raises:
            HeadwaterError: the write before this one failed.
        """
        self.wait()
        if dist.rank() and not self.sharded:
            return
        self._copy(tensors)
        self._pending = self._pool.submit(self._write, samples, dict(facts))

    def check(self) -> None:
        """Raise what a finished write has to say.

        Raises:
            HeadwaterError: it failed.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            HeadwaterError: the write failed.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:  # full disks come as OSError or torch's RuntimeError
            raise HeadwaterError(
                f"checkpoint in {self.folder}",
                f"could not be written ({type(error).__name__}: {error})",
                "free space or mend the folder's permissions, and run again: training continues "
                "from the last whole checkpoint",
            ) from error

    def close(self) -> None:
        """End the thread; a write in progress is finished first, its error not raised."""
        self._pool.shutdown()

    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Into buffers that are kept for the next time, pinned if they come from a GPU."""
        self._host = {n: t for n, t in self._host.items() if n in tensors}
        for name, tensor in tensors.items():
            if dist.is_sharded(tensor):
                self._host[name] = tensor.detach().to("cpu", copy=True)
                continue
            if name not in self._host:
                pinned = tensor.is_cuda
                self._host[name] = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
            self._host[name].copy_(tensor.detach(), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _write(self, samples: int, facts: dict[str, Any]) -> None:
        path = self.folder / f"samples-{samples:012d}.json"
        data = self._write_shards(path) if self.sharded else self._write_whole(path)
        if dist.rank():
            return
        files = [data] if data.is_file() else sorted(p for p in data.rglob("*") if p.is_file())
        note = {
            "samples": samples,
            "files": {p.relative_to(self.folder).as_posix(): sha256_file(p) for p in files},
            "shapes": {name: list(t.shape) for name, t in self._host.items()},
            "facts": facts,
        }
        write_json(path, note)
        checkpoints.prune(self.folder)

    def _write_whole(self, path: Path) -> Path:
        file = path.with_suffix(".pt")
        with atomic_file(file) as temp:
            torch.save(self._host, temp)
        return file

    def _write_shards(self, path: Path) -> Path:
        """Each rank its part (fsynced by DCP), into a folder without a note as yet."""
        # Here: its import takes seconds.
        from torch.distributed.checkpoint.state_dict_saver import save

        data = path.with_suffix("")
        if dist.rank() == 0:
            path.unlink(missing_ok=True)
            checkpoints.delete(data)
        td.barrier(self._group)
        save(self._host, checkpoint_id=data, process_group=self._group)
        return data
