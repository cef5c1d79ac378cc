"""Texts one behind another in rows of a fixed length: hardly a token of a batch is padding.

All steps lay their texts out alike. The training units, longest first, are cut into as many strata
as a batch has places, each as large as an epoch has steps, and every step takes one unit of each:
so a place needs room for the longest unit of its stratum, and the strata end where the next begin,
so that the room left over in all places together is less than the longest text. The rows are filled
with the strata once, by best fit (Johnson 1974), for the whole of training.

Texts never cross from one group of rows to another. A group is what one device holds of one
accumulated part; all groups are laid out alike, too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from keft_jax.config import check
from keft_jax.data.batch import Batch, Packing
from keft_jax.data.plan import EXAMPLES, LEFT, ORDER, Plan


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the texts of a batch lie."""

    length: int  # tokens of a text at most
    row: int  # tokens of a row
    rows: int  # of a group
    start: np.ndarray  # i32[u]: of a group's texts, in its rows end to end
    parts: int  # groups of a device, one for each accumulated part

    def place(self, batch: Batch) -> Batch:
        """The batch of one or several devices, as in a plan's order, with its rows."""
        units, length = len(self.start), batch.tokens.shape[1]
        shape = (len(batch.length) // (units * self.parts), units, self.parts)
        device, unit, part = (x.ravel() for x in np.indices(shape))
        start = self.start[unit]
        slot = np.full((shape[0], self.parts, self.rows * self.row), -1, np.int32)
        of, at = np.nonzero(np.arange(length) < batch.length[:, None])
        slot[device[of], part[of], start[of] + at] = unit[of] * length + at
        rows = slot.reshape(shape[0], self.parts, self.rows, self.row).swapaxes(1, 2)
        return dataclasses.replace(batch, packing=Packing(rows.reshape(-1, self.row), start))


class PackedPlan(Plan):
    """Training batches without end, whose texts lie in rows.

    An epoch has as many steps as full batches can be made of the units, and each step has
    `batch_size` of them. What is left over, fewer than a batch, waits for the next epoch: another
    part each time, in turn, so that all units come equally often. Within a stratum the order is
    drawn for each epoch, and so is which of equally long units belong to it.

    Args:
      lengths, batch_size, seed, draw, strata, owner: as those of a BatchPlan.
      longest: tokens of the longest text that there may be.
      row: tokens of a row.
      devices: that a batch is cut over.
      parts: accumulated parts of a batch.

    Raises:
      KeftError: fewer units than a batch has, or what a BatchPlan raises.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        longest: int,
        seed: int,
        draw: int | None = None,
        strata: np.ndarray | None = None,
        owner: np.ndarray | None = None,
        *,
        row: int,
        devices: int = 1,
        parts: int = 1,
    ) -> None:
        super().__init__(lengths, batch_size, seed, draw, strata, owner=owner)
        self._lengths = np.asarray(lengths)[self.examples]
        self._steps, self._rest = divmod(len(self.examples), batch_size)
        check(
            self._steps > 0,
            "optim.batch",
            batch_size,
            f"data.pack needs full batches, and there are {len(self.examples)} texts; lower it",
        )
        groups = devices * parts
        check(
            batch_size % groups == 0,
            "optim.batch",
            batch_size,
            f"must be a multiple of mesh.data x mesh.fsdp x optim.accumulate = {groups}",
        )
        self._cut = (batch_size // groups, devices, parts)
        longest_first = np.sort(self._lengths)[::-1]
        # Strata are dealt to the groups in turn: the first group's are the longest of each round.
        room = longest_first[: self._steps * batch_size : self._steps * groups]
        rows, start = fill_rows(room, row)
        self.layout = Layout(longest, row, rows, start, parts)
        self._dealt: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> tuple[Layout, np.ndarray]:
        """(how they lie, int32[batch_size] examples) of a step from 0 on."""
        check(step >= 0, "step", step, "use 0 or more")
        epoch, number = divmod(step, self._steps)
        kept = self._dealt  # as one tuple: threads may ask for two epochs at once
        if kept is None or kept[0] != epoch:
            kept = self._dealt = (epoch, self._deal(epoch))
        return self.layout, kept[1][number]

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to."""
        return step // self._steps

    def first_step(self, epoch: int) -> int:
        """Steps that lie before an epoch."""
        return epoch * self._steps

    def _deal(self, epoch: int) -> np.ndarray:
        """int32[steps, batch_size]: the batches of an epoch."""
        count, places = len(self.examples), self.batch_size
        waiting = np.arange(epoch * self._rest, (epoch + 1) * self._rest) % count
        waiting = self._permutation(count, LEFT)[waiting]
        here = np.delete(np.arange(count), waiting)
        order = np.lexsort((self._bits(len(here), EXAMPLES, epoch), -self._lengths[here]))
        strata = self.examples[here[order]].reshape(places, self._steps)
        turn = self._bits(strata.size, ORDER, epoch).reshape(strata.shape)
        dealt = np.take_along_axis(strata, np.argsort(turn, axis=1, kind="stable"), 1).T
        # From [round, device, part] to the order of a batch, whose parts take every unit in turn.
        return dealt.reshape(-1, *self._cut).swapaxes(1, 2).reshape(self._steps, places)


def fill_rows(lengths: np.ndarray, row: int) -> tuple[int, np.ndarray]:
    """(rows, i32[n]: where each of these falling lengths begins in the rows end to end). Each goes
    where it leaves the least room."""
    room = np.full(len(lengths), row)
    start = np.empty(len(lengths), np.int32)
    for i, length in enumerate(lengths):
        fullest = int(np.argmin(np.where(room >= length, room, row + 1)))
        start[i] = fullest * row + row - room[fullest]
        room[fullest] -= length
    return int((room < row).sum()), start
