"""The training loop: one for both rasterizers, resumable at any step."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker_agent.training.adam import Adam
from worker_agent.training.backend import Backend
from worker_agent.training.checkpoint import (
    Checkpoint,
    CheckpointUnusable,
    Size,
    changed,
    load_checkpoint,
    save_checkpoint,
)
from worker_agent.training.dataset import Dataset
from worker_agent.training.default import DefaultStrategy, scene_extent
from worker_agent.training.depth_prior import depth_loss, expected_depth
from worker_agent.training.draw import draw
from worker_agent.training.evaluation import Quality, evaluate
from worker_agent.training.exposure import Exposures
from worker_agent.training.floaters import floaters
from worker_agent.training.gaussians import Parameters, initial_gaussians
from worker_agent.training.lpips import Lpips
from worker_agent.training.mcmc import McmcStrategy
from worker_agent.training.medium import Medium
from worker_agent.training.projection import spherical_harmonics
from worker_agent.training.schedule import Schedule
from worker_agent.training.settings import TrainSettings
from worker_agent.training.ssim import ssim
from worker_agent.training.stopping import Ending, ending
from worker_agent.training.strategy import BudgetStrategy, Strategy
from worker_agent.training.views import Views

_REPORT_EVERY = 10
_COARSE_SHARE = 0.3  # of the steps, when the images are large enough to be halved
_COARSE_MIN_PIXELS = 64
_INITIAL_SHARE = 0.5  # of the cap, when the SfM model has fewer points
_CHECKS = 40  # looks at the held-out views in a whole run, of which only those at its end happen
_CHECKED_VIEWS = 4


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number, or no gaussian is left; the text says which and when."""


@dataclass(frozen=True, slots=True)
class Progress:
    """State after `step` of `steps` steps."""

    step: int
    steps: int
    loss: float
    gaussians: int


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run. `seconds` is training time over all attempts."""

    quality: Quality
    gaussians: int
    steps: int
    seconds: float
    peak_vram_mib: float | None  # None on a CPU
    resumed_from: int  # step, 0 when nothing was resumed
    ended: Ending
    floaters: int  # removed at the end


class Trainer:
    """Trains the gaussians of one dataset; `warn` takes one line for the operator."""

    def __init__(
        self,
        dataset: Dataset,
        settings: TrainSettings,
        backend: Backend,
        *,
        checkpoint: Path,
        warn: Callable[[str], None],
        lpips: Lpips | None = None,
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._backend = backend
        self._checkpoint = checkpoint
        self._warn = warn
        self._lpips = lpips
        device = backend.device
        initial = min(settings.cap, max(len(dataset.points), round(_INITIAL_SHARE * settings.cap)))
        self._schedule = Schedule(
            steps=settings.steps,
            cap=settings.cap,
            sh_degree=settings.sh_degree,
            initial=initial,
            gradual=settings.strategy != "default",
            coarse_share=_COARSE_SHARE if min(dataset.size) >= _COARSE_MIN_PIXELS else 0.0,
        )
        parameters = initial_gaussians(
            dataset.points,
            dataset.colors,
            count=initial,
            sh_degree=settings.sh_degree,
            generator=torch.Generator().manual_seed(settings.seed),
        )
        self._adam = Adam(
            {name: torch.nn.Parameter(value.data.to(device)) for name, value in parameters.items()}
        )
        self._strategy = _strategy(settings, self._schedule, dataset, warn)
        self._exposures = (
            Exposures(len(dataset.names), dataset.train, device) if settings.exposure else None
        )
        self._medium = Medium(dataset.images, device) if settings.medium else None
        self._history: list[float] = []  # held-out SSIM since the last gaussian was added
        self._views = Views(dataset, device)
        self._background = torch.zeros(1, 3, device=device)
        self._step = 0
        self._seconds = 0.0

    @property
    def parameters(self) -> Parameters:
        """The gaussians as they are now, in normalised coordinates."""
        return self._adam.parameters

    @property
    def dataset(self) -> Dataset:
        return self._dataset

    def run(self, on_progress: Callable[[Progress], None]) -> TrainingResult:
        """Resume from the checkpoint if there is one, train to the end, measure.

        Raises TrainingDiverged, and torch.cuda.OutOfMemoryError on a GPU.
        """
        identity, size = self._identity(), self._size()
        resumed = self._resume(identity, size)
        base, started = self._seconds, time.monotonic()
        saved = started
        ended = self._ending()
        while ended is None:
            loss = self._train_step()
            if self._step % _REPORT_EVERY == 0 or self._step == self._settings.steps:
                on_progress(self._checked(loss))
            now = time.monotonic()
            self._seconds = base + now - started
            if self._checks_at(self._step):
                self._history.append(self._checked_ssim())
            ended = self._ending()
            if now - saved >= self._settings.checkpoint_every_s:
                self._save(identity, size)
                saved = time.monotonic()
        self._save(identity, size)
        removed = self._remove_floaters()
        peak = None
        if self._backend.device.type == "cuda":
            peak = torch.cuda.max_memory_reserved(self._backend.device) / 2**20
        return TrainingResult(
            quality=evaluate(self._compared, self.truth, self._dataset.test, self._lpips),
            gaussians=len(self.parameters["means"]),
            steps=self._step,
            seconds=self._seconds,
            peak_vram_mib=peak,
            resumed_from=resumed,
            ended=ended,
            floaters=removed,
        )

    def _checks_at(self, step: int) -> bool:
        settings = self._settings
        if not (settings.plateau or settings.target_ssim):
            return False
        every = max(1, settings.steps // _CHECKS)
        return step > self._schedule.refine_until * settings.steps and step % every == 0

    def _checked_ssim(self) -> float:
        test = self._dataset.test
        some = test[:: -(-len(test) // _CHECKED_VIEWS)]
        return evaluate(self._compared, self.truth, some).ssim

    def _ending(self) -> Ending | None:
        settings = self._settings
        if self._step >= settings.steps:
            return "steps"
        if settings.budget_s and self._step and self._seconds >= settings.budget_s:
            return "budget"
        return ending(self._history, gain=settings.plateau, target=settings.target_ssim)

    def _remove_floaters(self) -> int:
        means, scales = (self.parameters[key].detach().cpu() for key in ("means", "scales"))
        alone = torch.from_numpy(floaters(means.numpy(), scales.exp().amax(dim=-1).numpy()))
        kept = (~alone).nonzero()[:, 0].to(self._backend.device)
        none = {name: value.data[:0] for name, value in self.parameters.items()}
        self._adam.replace(kept, none)
        return int(alone.sum())

    @torch.no_grad()
    def render(self, view: int) -> Tensor:
        """(H, W, 3) of a view at full size, with all SH bands trained so far."""
        return self._exposed(self._rasterize(view, 1)[0], view)

    @torch.no_grad()
    def in_air(self, view: int) -> Tensor | None:
        """(H, W, 3) of a view without the water; None where none was learned."""
        return None if self._medium is None else self._rasterize(view, 1, clear=True)[0]

    @property
    def water(self) -> dict[str, list[float]] | None:
        """What was learned of it, per unit of the SfM model."""
        scale = self._dataset.normalisation.scale
        return None if self._medium is None else self._medium.described(scale)

    def _exposed(self, image: Tensor, view: int) -> Tensor:
        return image if self._exposures is None else self._exposures.apply(image, view)

    def _compared(self, view: int) -> Tensor:
        return self._views.unmasked(self.render(view), self.truth(view), view)

    def truth(self, view: int) -> Tensor:
        """(H, W, 3) in [0, 1]."""
        return self._views.truth(view)

    def _train_step(self) -> Tensor:
        view = self._views.at(self._step, self._settings.seed)
        factor = self._schedule.downscale(self._step)
        plain, meta = self._rasterize(view, factor)
        target = self._views.truth(view, factor)
        image = self._views.unmasked(self._exposed(plain, view), target, view, factor)
        weight = self._settings.ssim_weight
        similarity = ssim(image.permute(2, 0, 1), target.permute(2, 0, 1))
        loss = (1.0 - weight) * (image - target).abs().mean() + weight * (1.0 - similarity)
        loss = loss + self._depth_term(view)
        torch.autograd.backward(loss + self._strategy.penalty(self.parameters))
        self._strategy.observe(meta)
        rates = self._schedule.learning_rates(self._step)
        self._adam.step(rates)
        self._strategy.moved(self._step, self.parameters, rates["means"])
        for learned in (self._exposures, self._medium):
            if learned is not None:
                learned.step(self._step / self._settings.steps)
        self._step += 1
        if self._schedule.refines_at(self._step):
            self._strategy.refine(self._step, self._adam)
            if self._backend.device.type == "cuda":
                # All tensors have another size now: what the old ones left would stay beside them.
                torch.cuda.empty_cache()
        return loss.detach()

    def _depth_term(self, view: int) -> Tensor | float:
        known, weight = self._dataset.disparities, self._settings.depth_weight
        if known is None or not weight:
            return 0.0
        height, width = known.shape[1:]
        pose = self._views.camera(view, 1)[0]
        matrix = self._views.intrinsics(view, width, height)
        depth, alpha = expected_depth(
            self._backend, self._adam.parameters, pose, matrix, (width, height)
        )
        return weight * depth_loss(depth, alpha, known[view].to(depth.device))

    def _rasterize(
        self, view: int, factor: int, *, clear: bool = False
    ) -> tuple[Tensor, dict[str, object]]:
        pose, matrix, width, height = self._views.camera(view, factor)
        p = self._adam.parameters
        degree: int | None = self._schedule.active_sh_degree(self._step)
        colors, background = torch.cat([p["sh0"], p["shN"]], dim=1), self._background
        if self._medium is not None and not clear:
            colors = self._under_water(self._medium, pose, colors, degree or 0)
            degree, background = None, self._medium.background[None]
        image, _, meta = draw(
            self._backend, p, colors, pose, matrix, (width, height),
            sh_degree=degree, background=background,
        )  # fmt: skip
        return image, meta

    def _under_water(self, medium: Medium, pose: Tensor, bands: Tensor, degree: int) -> Tensor:
        """(N, 3) colours of the gaussians as a camera at `pose` sees them through the water."""
        means = self._adam.parameters["means"]
        directions = means + pose[:3, :3].T @ pose[:3, 3]
        colors = (spherical_harmonics(degree, directions, bands) + 0.5).clamp_min(0.0)
        return medium.apply(colors, (means @ pose[2, :3] + pose[2, 3]).clamp_min(0.0))

    def _checked(self, loss: Tensor) -> Progress:
        value, count = float(loss), len(self.parameters["means"])
        if not math.isfinite(value):
            raise TrainingDiverged(f"the loss is {value} at step {self._step}")
        if count == 0:
            raise TrainingDiverged(f"no gaussian is left at step {self._step}")
        return Progress(self._step, self._settings.steps, value, count)

    def _identity(self) -> str:
        """Of all that a run is, but for its size: how many gaussians, how large the images."""
        settings, schedule = self._settings, self._schedule
        run = (schedule.steps, schedule.sh_degree, self._backend.name, settings.strategy)
        terms = (settings.ssim_weight, settings.depth_weight)
        learned = (settings.seed, settings.exposure, settings.medium)
        digest = hashlib.sha256(repr((run, terms, learned, self._dataset.names)).encode())
        digest.update(repr((self._dataset.train, self._dataset.normalisation)).encode())
        digest.update(self._dataset.viewmats.contiguous().numpy().data)
        digest.update(self._dataset.points.tobytes())
        return digest.hexdigest()

    def _size(self) -> Size:
        digest = hashlib.sha256()
        dataset = self._dataset
        for tensor in (dataset.images, dataset.intrinsics, dataset.masks, dataset.disparities):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
        return Size(self._settings.cap, dataset.size[0], digest.hexdigest())

    def _save(self, identity: str, size: Size) -> None:
        parameters = {name: value.data for name, value in self.parameters.items()}
        save_checkpoint(
            self._checkpoint,
            Checkpoint(
                step=self._step,
                identity=identity,
                size=astuple(size),
                parameters=parameters,
                adam=self._adam.state(),
                strategy=self._strategy.state(),
                exposure={} if self._exposures is None else self._exposures.state(),
                medium={} if self._medium is None else self._medium.state(),
                history=self._history,
                seconds=self._seconds,
            ),
        )

    def _resume(self, identity: str, size: Size) -> int:
        try:
            found = load_checkpoint(self._checkpoint, identity)
            change = None if found is None else changed(Size(*found.size), size)
        except CheckpointUnusable as error:
            self._warn(f"training starts anew: {error}")
            return 0
        if found is None:
            return 0
        device = self._backend.device
        self._adam.parameters.update(
            {name: torch.nn.Parameter(v.to(device)) for name, v in found.parameters.items()}
        )
        self._adam.restore(found.adam)
        self._strategy.restore(found.strategy)
        if self._exposures is not None:
            self._exposures.restore(found.exposure)
        if self._medium is not None:
            self._medium.restore(found.medium)
        self._step, self._seconds = found.step, found.seconds
        if change is None:
            self._history = list(found.history)
        else:
            removed = self._thin()
            self._warn(f"training goes on from step {found.step} with {change}{removed}")
        return found.step

    def _thin(self) -> str:
        """Down to what the plan allows now, the least opaque first; in words what it did."""
        allowed = self._schedule.budget(self._step)
        opacities = self.parameters["opacities"].data
        surplus = len(opacities) - allowed
        if surplus <= 0:
            return ""
        kept = torch.argsort(opacities, descending=True, stable=True)[:allowed].sort().values
        self._adam.replace(kept, {name: value.data[:0] for name, value in self.parameters.items()})
        self._strategy.kept(kept)
        return f"; the {surplus} least opaque gaussians are left out"


def _strategy(
    settings: TrainSettings, schedule: Schedule, dataset: Dataset, warn: Callable[[str], None]
) -> Strategy:
    count, seed = schedule.initial, settings.seed
    if settings.strategy == "mcmc":
        return McmcStrategy(schedule, seed=seed)
    if settings.strategy == "default":
        extent = scene_extent(dataset.viewmats)
        return DefaultStrategy(schedule, count, extent=extent, seed=seed, warn=warn)
    return BudgetStrategy(schedule, count, seed=seed, warn=warn)
