"""What changes over a training run, as pure functions of the step: rates, sizes, resolution.

Nothing here has state, so a resumed run needs only its step to go on exactly as before.
"""

from __future__ import annotations

from dataclasses import dataclass

_REFERENCE_STEPS = 30_000
_MEANS_RATE = 3.2e-4  # of the median view depth, at the reference length
_MEANS_DECAY = 0.01  # the rate of the means falls to this share of its start
_RESET_REFINEMENTS = 5  # from one reset of opacities to the next: gsplat's share of its refinements
_RESET_MIN = 300  # steps: about 100 of Adam's bring an opacity back from 0.01
_RATES = {"scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "sh0": 2.5e-3, "shN": 1.25e-4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The plan of one run of `steps` steps that ends with at most `cap` gaussians."""

    steps: int
    cap: int
    sh_degree: int
    initial: int  # gaussians at the start
    gradual: bool = True  # whether the budget grows from these to the cap, else it is the cap
    coarse_share: float = 0.0  # of the steps, rendered at half resolution
    refine_from: float = 0.1  # shares of the steps between which gaussians are added
    refine_until: float = 0.7

    @property
    def refine_every(self) -> int:
        """Steps between two refinements: long enough to see most views in between."""
        return max(25, self.steps // 40)

    def learning_rates(self, step: int) -> dict[str, float]:
        """Adam's rate for each parameter group.

        Short runs take longer steps: Adam moves a parameter by about rate x steps, so the rates
        of 30,000 steps are raised by the square root of what is missing.
        """
        boost = max(1.0, _REFERENCE_STEPS / max(1, self.steps)) ** 0.5
        decay = _MEANS_DECAY ** (step / max(1, self.steps))
        rates = dict(_RATES)
        rates["sh0"] *= min(2.0, boost)
        rates["shN"] *= min(2.0, boost)
        rates["means"] = _MEANS_RATE * boost * decay
        return rates

    def active_sh_degree(self, step: int) -> int:
        """One more band with each fifth of the run, from band 0 on."""
        return min(self.sh_degree, 5 * step // max(1, self.steps))

    def downscale(self, step: int) -> int:
        """Factor by which images are reduced at this step: 2 early on, then 1."""
        return 2 if step < self.coarse_share * self.steps else 1

    def refines_at(self, step: int) -> bool:
        """Whether gaussians are added and removed after this step."""
        inside = self.refine_from * self.steps <= step <= self.refine_until * self.steps
        return inside and step > 0 and step % self.refine_every == 0

    @property
    def reset_every(self) -> int:
        """Steps between two resets of the opacities, where the strategy resets them."""
        return self.refine_every * max(_RESET_REFINEMENTS, -(-_RESET_MIN // self.refine_every))

    def resets_at(self, step: int) -> bool:
        """Whether opacities are reset with the refinement after this step: never at the last one,
        nor where the run ends before they can be as they were."""
        inside = self.refines_at(step) and step < self.refine_until * self.steps
        left = self.steps - step >= self.reset_every
        return inside and left and step % self.reset_every == 0

    def budget(self, step: int) -> int:
        """Number of gaussians allowed after the refinement at `step`.

        Grows as 1 - (1 - u)² over the refinement window, fast at first and level at its end, so
        that late gaussians still have time to converge (after Taming 3DGS, Mallick et al. 2024).
        """
        if not self.gradual:
            return self.cap
        start, end = self.refine_from * self.steps, self.refine_until * self.steps
        u = min(1.0, max(0.0, (step - start + self.refine_every) / max(1.0, end - start)))
        low = min(self.initial, self.cap)
        return low + round((self.cap - low) * (1.0 - (1.0 - u) ** 2))
