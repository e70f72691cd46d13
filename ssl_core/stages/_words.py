"""A verdict's reason, in sentences that give the numbers it rests on."""

from __future__ import annotations

from typing import Any

from ..config import Deploy
from ._proof import enough, harmed
from ._watch import Look


def say_inputs(found: dict[str, Any]) -> str:
    """What is wrong with the feed, or nothing."""
    if not found["broken"]:
        return ""
    usable = found["images"] - found["rejected"]
    return (
        f"Check the feed: {found['rejected']} of {found['images']} inputs were unreadable and "
        f"{found['distinct']} of {usable} images are distinct. "
    )


def say_drift(look: Look, evidence: dict[str, Any]) -> str:
    """The alarm, the evidence of all days, and this day's p-values."""
    if not look.scores:
        why = next(iter(look.skipped.values()), "no detector is set")
        state = f" The alarm of {evidence['alarm']} stands." if evidence["alarm"] else ""
        return f"Not tested for drift: {why}.{state}"
    parts = ", ".join(f"{name} p = {s['p_value']:.3g}" for name, s in look.scores.items())
    level = f"{evidence['value']:.3g} of {evidence['threshold']:.3g}"
    if not evidence["alarm"]:
        return f"No drift alarm: evidence {level} needed for one (today: {parts})."
    since = f", changed since about {evidence['since']}" if evidence["since"] else ""
    if evidence["alarm"] == look.date:
        return f"Drift alarm: evidence {level} needed{since} (today: {parts})."
    return f"The drift alarm of {evidence['alarm']} stands{since} (today: {parts})."


def say_harm(deploy: Deploy, found: dict[str, Any] | None) -> str:
    """What labels say."""
    if found is None:
        return "No labels yet, so harm is unknown."
    text = (
        f"Accuracy is {found['value']:.1%} on {found['n']} labels against {found['reference']:.1%} "
        f"on the reference (difference {found['difference']:+.1%}, 95% interval "
        f"{found['difference_low']:+.1%} to {found['difference_high']:+.1%}): "
    )
    if not enough(deploy, found):
        return text + f"too few to judge ({deploy.min_labels} needed)."
    proven = "a loss above" if harmed(deploy, found) else "no proven loss above"
    level = f"{found['proof']['e_value']:.3g} of {found['proof']['threshold']:.3g} needed"
    return text + f"{proven} {deploy.min_drop:.1%} (evidence {level})."
