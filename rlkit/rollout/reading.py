"""Models that read rows of different lengths into one cache: what companions of a control see, and what a control hides from a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from rlkit.errors import ModelError, first_line
from rlkit.model.hub import read_config
from rlkit.model.load import first_of, load_for
from rlkit.model.policy import probe_tokens
from rlkit.rollout.control import Companion

SLACK = 64  # positions of room beyond what is needed, so that rooms are copied rarely


class _Spot:
    """Where the tokens of a pass stand: ``rows`` ``[r]`` of the cache, ``at`` ``[r, q]`` their places in it.

    ``height``, ``width``: rows and places that the cache must have for them. ``whole``: they are its first r rows.
    """

    rows: Tensor
    at: Tensor
    height: int
    width: int
    whole: bool


class _Layer(DynamicLayer):
    """Keys and values by row and place, in any order; what stands beyond a row's length, or is hidden, is left to the mask."""

    def __init__(self, spot: _Spot) -> None:
        super().__init__()
        self.spot = spot

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        spot = self.spot
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (x[:0, :, :0] for x in (key_states, value_states))
        shown = []
        for name, new in (("keys", key_states), ("values", value_states)):
            room = _at_least(getattr(self, name), spot.height, spot.width)
            room[spot.rows[:, None], :, spot.at] = new.transpose(1, 2)
            setattr(self, name, room)
            shown.append((room[: len(spot.rows)] if spot.whole else room[spot.rows])[:, :, : spot.width])
        return shown[0], shown[1]

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[indices], self.values[indices]


def _at_least(room: Tensor, rows: int, width: int) -> Tensor:
    """``room`` ``[rows, heads, width, d]``, or a larger copy of it."""
    have, heads, wide, d = room.shape
    if rows <= have and width <= wide:
        return room
    out = room.new_zeros(max(rows, have), heads, max(wide, width + SLACK), d)
    out[:have, :, :wide] = room
    return out


class Reading:
    """What ``model`` has read of each row.

    A row's tokens stand in the cache one after the other, so rows need no padding whatever their lengths; ``hidden`` places of a row are
    there for nobody, as if they had never been read.
    """

    def __init__(self, model: Any, rows: int = 0) -> None:
        self.model, config = model, model.config.get_text_config()
        self.spot = _Spot()
        self.layers = [_Layer(self.spot) for _ in range(config.num_hidden_layers)]
        self.cache = Cache(layers=[*self.layers])
        kinds = (
            set(config.layer_types) if "layer_types" in config.to_dict() and config.layer_types else {"full_attention"}
        )
        if kinds - {"full_attention", "sliding_attention"}:
            raise ModelError(
                f"{config.model_type} has layers that are no attention ({', '.join(sorted(kinds))}): rows of different lengths cannot be "
                "read into one cache of it."
            )
        self.by_kind = "sliding_attention" in kinds
        window = config.to_dict().get("sliding_window")
        self.window = window if self.by_kind or "layer_types" not in config.to_dict() else None
        self.length = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.hidden = torch.zeros(rows, 0, dtype=torch.bool, device=model.device)

    def open(self, row: int) -> None:
        """Row ``row``, which may be a new one, has read nothing."""
        grown = max(row + 1, len(self.length))
        self.length = _padded(self.length, grown)
        self.hidden = _padded(self.hidden, grown)
        self.length[row], self.hidden[row] = 0, False

    def hide(self, row: int, start: int, stop: int, hidden: bool = True) -> None:
        """Places ``start`` to ``stop`` of a row are not seen by what is read from now on; or are again."""
        self.hidden = _padded(self.hidden.T, max(stop, self.hidden.shape[1])).T.contiguous()
        self.hidden[row, start:stop] = hidden

    def read(self, rows: Tensor, ids: Tensor | None = None, *, embeds: Tensor | None = None, keep: int = 1) -> Tensor:
        """New tokens ``ids`` ``[r, q]`` of some rows, or their ``embeds`` ``[r, q, H]``; what the model makes of the last ``keep`` of them,
        ``[r, keep, C]``.
        """
        given = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds}
        q = next(iter(given.values())).shape[1]  # type: ignore[union-attr]
        at = self.length[rows, None] + torch.arange(q, device=rows.device)
        places = torch.arange(int(at.max()) + 1, device=rows.device)
        seen = (places <= at[..., None]) & ~self._hides(rows, len(places))
        out = self._pass(rows, at, at, seen, keep, **given)
        self.length[rows] += q
        return out

    def read_last(self, rows: Tensor, fresh: Sequence[Sequence[int]]) -> Tensor:
        """New tokens of some rows, at least one of each; what the model makes of the last ones, ``[r, C]``."""
        counts = sorted({len(new) for new in fresh})  # rows with as many new tokens are read together
        parts = [[k for k, new in enumerate(fresh) if len(new) == count] for count in counts]
        found = [
            self.read(rows[some], torch.tensor([list(fresh[k]) for k in some], device=rows.device))[:, -1]
            for some in parts
        ]
        order = torch.tensor([k for some in parts for k in some], device=rows.device).argsort()
        return torch.cat(found)[order]

    def after(self, rows: Tensor, ids: Tensor) -> Tensor:
        """What the model makes of each row with one of the tokens ``ids`` ``[r, k]`` behind it, ``[r, k, C]``; none of them stays."""
        end = self.length[rows, None]
        at = end + torch.arange(ids.shape[1], device=rows.device)
        places = torch.arange(int(at.max()) + 1, device=rows.device)
        seen = ((places < end[..., None]) | (places == at[..., None])) & ~self._hides(rows, len(places))
        return self._pass(rows, at, end.expand_as(at), seen, ids.shape[1], input_ids=ids)

    def select(self, rows: Tensor) -> None:
        """Only these rows, in this order; a row may come more than once."""
        self.cache.batch_select_indices(rows)
        self.length, self.hidden = self.length[rows], self.hidden[rows]

    def fork(self, row: int, length: int) -> Reading:
        """Another reading of what stands at the first ``length`` places of one row."""
        out = Reading(self.model, 1)
        for own, other in zip(self.layers, out.layers, strict=True):
            assert own.keys is not None and own.values is not None, "something was read"
            other.lazy_initialization(own.keys, own.values)
            other.keys, other.values = (x[row : row + 1, :, :length].clone() for x in (own.keys, own.values))
        out.length[0], out.hidden = length, self.hidden[row : row + 1, :length].clone()
        return out

    def _hides(self, rows: Tensor, places: int) -> Tensor:
        """``[r, 1, places]``."""
        return _padded(self.hidden[rows].T, places).T[:, :places].unsqueeze(1)

    def _pass(self, rows: Tensor, at: Tensor, position: Tensor, seen: Tensor, keep: int, **given: Any) -> Tensor:
        spot = self.spot
        spot.rows, spot.at, spot.height, spot.width = rows, at, int(rows.max()) + 1, seen.shape[-1]
        spot.whole = bool((rows == torch.arange(len(rows), device=rows.device)).all())
        mask: Any = self._mask(seen)
        if self.window is not None:
            # Places are in the order of positions, but for those of `after`, which see themselves whatever the window.
            near = position[..., None] - torch.arange(seen.shape[-1], device=rows.device) < self.window
            windowed = self._mask(seen & near)
            mask = {"full_attention": mask, "sliding_attention": windowed} if self.by_kind else windowed
        options = {"logits_to_keep": keep} if self.model.get_output_embeddings() is not None else {}
        with torch.no_grad():
            out = self.model(
                **given,
                attention_mask=mask,
                position_ids=position,
                past_key_values=self.cache,
                use_cache=True,
                **options,
            )
        logits: Tensor = out.logits[:, -keep:]
        return logits

    def _mask(self, seen: Tensor) -> Tensor:
        """``[r, 1, q, places]``, added to the scores of attention."""
        dtype = self.model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[
            :, None
        ]


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])]) if rows > len(x) else x


def proven(model: Any, where: str) -> Any:
    """``model``, if a :class:`Reading` of it gives what its own forward pass does: read in parts, beside a shorter row, and as candidates.

    Raises:
        ModelError: the relative difference.
    """
    ids = probe_tokens(model, 12)[None]
    with torch.no_grad():
        want = model(input_ids=ids).logits[0].float()
    reading, rows = Reading(model, 2), torch.arange(2, device=ids.device)
    try:
        reading.read(rows[1:], ids[:, :3])
        reading.read(rows[:1], ids[:, :8])
        got = reading.read(rows, torch.stack([ids[0, 8:10], ids[0, 3:5]]), keep=2)
        last = reading.after(rows[:1], ids[:, [5, 10]])[0, 1]
    except Exception as error:  # whatever a model's code makes of a mask or a cache that it does not know
        raise ModelError(f"{where}: this model cannot read along ({first_line(error)[:200]}).") from error
    got = torch.cat([got[0], got[1], last[None]]).float()
    want = torch.cat([want[8:10], want[3:5], want[10:11]])
    gap = float((got - want).norm() / want.norm().clamp(min=1e-9))
    if not gap <= (0.05 if model.dtype == torch.bfloat16 else 1e-4):
        raise ModelError(
            f"{where}: read token by token this model gives other outputs than in one pass (relative difference {gap:.2g})."
        )
    return model


def load_companion(one: Companion, dtype: torch.dtype, device: torch.device) -> Any:
    """The model, frozen, on ``device``.

    Raises:
        ModelError: there is none, it is of another kind, or it cannot read along.
    """
    model = _load_values(one, dtype) if one.values else load_for(one.path, dtype, None, one.where)[0]
    return proven(model.to(device).eval().requires_grad_(False), one.where)


def _load_values(one: Companion, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForTokenClassification

    read_config(one.path, one.where, ModelError)
    try:
        read: Any = AutoModelForTokenClassification.from_pretrained(
            one.path, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # whatever transformers makes of somebody's files
        raise ModelError(
            f"{one.where}: {one.path} could not be loaded as a token classifier: {first_line(error)}"
        ) from error
    model, told = read
    if told["missing_keys"]:
        raise ModelError(
            f"{one.where}: {one.path} has no {first_of(sorted(told['missing_keys']), 'tensor')}: it is no token classifier. A value "
            "model is one that AutoModelForTokenClassification saved."
        )
    return model


class Along:
    """The companions of a control over the rows of one batch; what :class:`rlkit.rollout.control.Seen` asks for."""

    def __init__(self, companions: Sequence[Companion], models: Sequence[Any], rows: int = 0) -> None:
        self.readings = [Reading(model, rows) for model in models]
        # Of one tokenizer, but perhaps padded differently: what all of them know.
        sizes = [
            m.get_output_embeddings().weight.shape[0] for m, c in zip(models, companions, strict=True) if not c.values
        ]
        self.classes: int | None = min(sizes, default=None)
        self._rows = torch.zeros(0, dtype=torch.long)
        self._last: list[Tensor] = []

    def read(self, rows: Tensor, fresh: Sequence[Sequence[int]]) -> None:
        """New tokens of ``rows``, at least one of each."""
        self._rows = rows
        self._last = [reading.read_last(rows, fresh) for reading in self.readings]

    def rewind(self, rows: Tensor, length: Tensor) -> None:
        """Of each row only so many tokens have been read."""
        for reading in self.readings:
            reading.length[rows] = length

    def logits(self, i: int) -> Tensor:
        return self._last[i][:, : self.classes]

    def after(self, i: int, ids: Tensor) -> Tensor:
        return self.readings[i].after(self._rows, ids)

    def batch_select_indices(self, rows: Tensor) -> None:
        for reading in self.readings:
            reading.select(rows)
