"""The passes through the network for rows that run together: pictures in, patches out; prompts and drafts in, logits out.

`Passes` runs them as they come. `RecordedPasses` runs one row in memory of fixed size, so that on a GPU each pass is one recorded CUDA
graph instead of a thousand launches; elsewhere it calls the same functions, which is how its shapes are tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openvla_ros.contract import ByteArray
from openvla_ros.policy.openvla.attention import filling
from openvla_ros.policy.openvla.language import KeyValueCache
from openvla_ros.policy.openvla.model import OpenvlaModel

BUCKET = 16
"""Prompts are filled up to a multiple of so many tokens where shapes are fixed."""

WARM_TOKENS = 96
"""Prompts up to this length are recorded before the first action is asked for; an English instruction of 256 characters takes about 90."""


class Passes:
    """Runs every pass in shapes that fit. cache: the keys and values of the rows that run together, at least so many."""

    fixed_width = False

    def __init__(self, model: OpenvlaModel, levels: Tensor, cache: KeyValueCache) -> None:
        """levels: [colours of all towers, 256] what each grey level becomes for each tower, in the weights' type and on their device."""
        self.model, self.levels, self.cache = model, levels, cache
        self.device = levels.device

    def look(self, pictures: Sequence[ByteArray]) -> Tensor:
        """[side, side, 3] uint8 each -> pixels [B, colours, side, side] on the device."""
        return shade(self.levels, torch.from_numpy(np.stack(pictures)).to(self.device))

    def see(self, pixels: Tensor) -> Tensor:
        """Patch embeddings [B, P, W]."""
        return self.model.see(pixels)

    def prefill(self, patches: Tensor, prompts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]] = ()) -> Tensor:
        """Read patches, prompts and, where given, one draft per row; logits [B, 1 + drafted, vocab] behind the prompt and each drafted id.

        Shorter rows are filled up behind their end: the filling is read by nobody, and later tokens take its places.
        """
        texts = [[*prompt, *draft] for prompt, draft in zip(prompts, drafts or [()] * len(prompts), strict=True)]
        width, asked = max(map(len, texts)), 1 + (len(drafts[0]) if drafts else 0)
        width = min(width + filling(patches.shape[1] + width, patches), self.cache.length - patches.shape[1])
        ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=self.device)
        begins = torch.tensor([patches.shape[1] + len(prompt) - 1 for prompt in prompts], device=self.device)
        wanted = begins[:, None] + torch.arange(asked, device=self.device)
        return self.read(patches, ids, wanted)

    def read(self, patches: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
        """Everything from position 0 on; logits [B, S, vocab] behind the `wanted` positions [B, S]."""
        sequence = self.model.join(patches, ids)
        places = self.cache.consecutive(0, sequence.shape[1])
        return self.model.language_model(sequence, self.cache, places, wanted)  # type: ignore[no-any-return]

    def more(self, tokens: Tensor, starts: Sequence[int]) -> Tensor:
        """Read [B, T] ids of which row b's first stands at position starts[b]; logits [B, T, vocab] behind each."""
        language, count = self.model.language_model, tokens.shape[1]
        alike = len(set(starts)) == 1
        places = self.cache.consecutive(starts[0], count) if alike else self.cache.staggered(starts, count)
        return language(language.embed(tokens), self.cache, places)  # type: ignore[no-any-return]


class RecordedPasses(Passes):
    """Runs one row in fixed memory. Prompts are filled up to a multiple of BUCKET tokens: nothing reads the filling."""

    fixed_width = True

    def __init__(self, model: OpenvlaModel, levels: Tensor, cache: KeyValueCache, count: int) -> None:
        """count: action tokens."""
        super().__init__(model, levels, cache)
        side, self.patches, self.count = model.shape.towers[0].side, model.shape.towers[0].patches, count
        on_gpu = self.device.type == "cuda"
        self.picture = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=self.device)
        self.staging = torch.zeros(1, side, side, 3, dtype=torch.uint8, pin_memory=on_gpu)
        self.positions = torch.arange(cache.length, device=self.device)
        # Room for the longest prompt, filled up, with a draft behind it.
        self.ids = torch.zeros(1, cache.length - self.patches, dtype=torch.int64, device=self.device)
        self.host_ids = torch.zeros(1, cache.length - self.patches, dtype=torch.int64, pin_memory=on_gpu)
        self.wanted = torch.zeros(1, count, dtype=torch.int64, device=self.device)
        self.tokens = torch.zeros(1, count, dtype=torch.int64, device=self.device)
        self.places = torch.zeros(1, count, dtype=torch.int64, device=self.device)
        self.bucket = BUCKET
        self.pixels: Tensor | None = None
        self.patch_embeddings: Tensor | None = None
        self.recordings: dict[tuple[str, int, int], Recording] = {}
        self.pool = torch.cuda.graph_pool_handle() if on_gpu else None

    def look(self, pictures: Sequence[ByteArray]) -> Tensor:
        """One picture through page-locked memory; levels are looked up on the device."""
        np.copyto(self.staging[0].numpy(), pictures[0])
        self.picture.copy_(self.staging, non_blocking=True)
        self.pixels = self.replay("look", 0, 0, lambda: shade(self.levels, self.picture))
        return self.pixels

    def see(self, pixels: Tensor) -> Tensor:
        """The patches of what `look` gave last."""
        assert pixels is self.pixels
        self.patch_embeddings = self.replay("see", 0, 0, lambda: self.model.see(pixels))
        return self.patch_embeddings

    def prefill(self, patches: Tensor, prompts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]] = ()) -> Tensor:
        """As in `Passes`, for the patches that `see` gave last."""
        assert patches is self.patch_embeddings
        prompt, draft = list(prompts[0]), list(drafts[0]) if drafts else []
        self.bucket = min(-(-len(prompt) // BUCKET) * BUCKET, self.ids.shape[1] - self.count)
        asked, width, begin = 1 + len(draft), self.bucket + len(draft), self.patches + len(prompt) - 1
        self.host_ids[0, :width] = torch.tensor(prompt + draft + [0] * (width - len(prompt) - len(draft)))
        self.ids[:, :width].copy_(self.host_ids[:, :width], non_blocking=True)
        self.wanted[:, :asked].copy_(self.positions[begin:begin + asked])
        logits = self.replay("prefill", self.bucket, asked, lambda: self.read(patches, self.ids[:, :width], self.wanted[:, :asked]))
        return logits.clone()  # recordings share memory

    def more(self, tokens: Tensor, starts: Sequence[int]) -> Tensor:
        """As in `Passes`. Tokens that lie on the device are not waited for."""
        count = tokens.shape[1]
        self.tokens[:, :count].copy_(tokens)
        self.places[:, :count].copy_(self.positions[starts[0]:starts[0] + count])
        end = self.patches + self.bucket + self.count

        def run() -> Tensor:
            language = self.model.language_model
            return language(language.embed(self.tokens[:, :count]), self.cache,  # type: ignore[no-any-return]
                            self.cache.scattered(self.places[:, :count], end))

        return self.replay("more", self.bucket, count, run).clone()

    def replay(self, name: str, bucket: int, width: int, run: Callable[[], Tensor]) -> Tensor:
        """Run what was recorded under this name and these sizes; record it first where it was not yet."""
        key = (name, bucket, width)
        if key not in self.recordings:
            self.recordings[key] = Recording(run, self.pool)
        return self.recordings[key]()

    def warm_up(self, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Record every pass for prompts up to WARM_TOKENS, with and without a draft. report: called with (prompt lengths done, in all)."""
        patches = self.see(self.look([np.zeros(tuple(self.picture.shape[1:]), dtype=np.uint8)]))
        longest = min(WARM_TOKENS, self.ids.shape[1] - self.count)
        lengths = [*range(BUCKET, longest, BUCKET), longest]
        for done, length in enumerate(lengths, start=1):
            for drafted in ((0, self.count - 1) if self.count > 1 else (0,)):
                self.prefill(patches, [[1] * length], [[1] * drafted] if drafted else [])
                self.more(torch.ones(1, max(1, drafted), dtype=torch.int64, device=self.device), [self.patches + length])
            report(done, len(lengths))


class Recording:
    """A function from fixed memory to fixed memory. On a GPU its first call records a CUDA graph, later ones replay it."""

    def __init__(self, run: Callable[[], Tensor], pool: Any) -> None:
        """pool: memory that the recordings share, since one runs at a time; None: there is no GPU."""
        self.run, self.pool = run, pool
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Tensor | None = None

    def __call__(self) -> Tensor:
        """What `run` gives, always in the same memory."""
        if self.pool is None:
            self.result = self.run() if self.result is None else self.result.copy_(self.run())
            return self.result
        if self.graph is None:
            self.record()
        assert self.graph is not None and self.result is not None
        self.graph.replay()
        return self.result

    def record(self) -> None:
        """Run it to let the libraries make their buffers, on a stream of its own as recording asks for, then record."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=self.pool):
            self.result = self.run()


def shade(levels: Tensor, pictures: Tensor) -> Tensor:
    """[colours, 256] and [B, side, side, 3] uint8 -> [B, colours, side, side]: what each grey level is for each tower's colour."""
    colours = len(levels)
    planes = pictures.permute(0, 3, 1, 2).to(torch.int32).repeat(1, colours // 3, 1, 1)
    planes += torch.arange(0, 256 * colours, 256, dtype=torch.int32, device=levels.device)[:, None, None]
    return levels.reshape(-1).index_select(0, planes.reshape(-1)).view(planes.shape)
