"""The learning rate of each step, set by hand: a function one can read, plot and test at its corners."""
import math

FINAL = 0.02        # of the base rate, where the cosine ends


def learning_rate(step: int, total_steps: int, base: float, warmup_steps: int, kind: str = "step",
                  drops: tuple = (0.67, 0.89)) -> float:
    """The rate for step 0 .. total_steps - 1.

    Linear warm-up from base / warmup_steps to base over warmup_steps, then
    "step"    base, times 0.1 at each fraction of the run in `drops`
    "cosine"  half a cosine from base to base * FINAL
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if kind == "step":
        return base * 0.1 ** sum(step >= round(fraction * total_steps) for fraction in drops)
    if kind == "cosine":
        progress = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
        return base * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * progress)))
    raise ValueError(f"--schedule is {kind!r}, not one of step, cosine")
