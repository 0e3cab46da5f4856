"""Images unlike those of the training: which are refused, and what a record says of the others."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffuseg.data.plan import Plan
from diffuseg.data.region import box_of
from diffuseg.data.slides import Slide
from diffuseg.data.transforms import grid_transform
from diffuseg.data.world import far_from_training, larger_than_training, outside_training
from diffuseg.errors import UserError
from diffuseg.types import Image

REASON = "the image is far outside of the training"


def far_outside(meta: dict[str, Any], plan: Plan, image: Image, region: str | None = None) -> list[str]:
    """In what an image, or its region, is far outside of the training, with figures; [] of a slide, which has glass.

    Args:
        meta: The model's header.
        plan: Of the model.
        image: As in its file.
        region: As `SamplingOptions` has it; then it is what is compared.

    Raises:
        UserError: The region is none of this image.
    """
    if isinstance(image.header, Slide):
        return []
    if region is None:
        return far_from_training(meta.get("fingerprint"), image, plan)
    part = _part(image, box_of(region, image, plan, grid_transform(image, plan)))
    return far_from_training(meta.get("fingerprint"), part, plan)


def refuse_far(far: Sequence[str], image: Image) -> None:
    """Refuse an image that is far outside of the training.

    Args:
        far: In what it is, see `far_outside`.
        image: The image.

    Raises:
        UserError: It is so in anything.
    """
    if not far:
        return
    mends = {
        "extent": "Crop it, or give --region: the part that training images show.",
        "spacing": "Are spacing and unit of length in its header right?",
    }
    mend = next((mends[key] for key in mends if any(fault.startswith(key) for fault in far)), "Is this the model for it?")
    do = f"{mend} --anyway (in Python anyway=True) segments it as it is, without calibration"
    raise UserError(
        f"refused, as it is far outside of what the model was trained on: {'; '.join(far)}", file=image.source, do=do
    )


def announced(meta: dict[str, Any], plan: Plan, image: Image, region: str | None, anyway: bool) -> list[str]:
    """What is said of an image before its draws: in what it is larger than the training, or far outside and not refused.

    Args:
        meta: The model's header.
        plan: Of the model.
        image: As in its file.
        region: As `SamplingOptions` has it; what was chosen is not too large.
        anyway: It is segmented whatever it is.
    """
    far = far_outside(meta, plan, image, region)
    if far:
        return far if anyway else []
    whole = region is None and not isinstance(image.header, Slide)
    return larger_than_training(meta.get("fingerprint"), image, plan) if whole else []


def uncalibrated(far: Sequence[str], record: dict[str, Any]) -> dict[str, Any]:
    """What the record of an image says that was segmented although it is far outside of the training.

    Args:
        far: In what it is.
        record: So far; it stays as it is.
    """
    note = f"{record['volume_note']}; raw: not calibrated, as {REASON}"
    calibration = {"applied": False, "reason": f"{REASON}: {'; '.join(far)}"}
    return {"calibration": calibration, "volume_note": note}


def unlike_training(
    meta: dict[str, Any], plan: Plan, image: Image, record: dict[str, Any], mask: np.ndarray, far: Sequence[str]
) -> dict[str, Any]:
    """In what image and volumes are unlike all training cases; then the case needs review, however sure the draws are.

    Args:
        meta: The model's header.
        plan: Of the model.
        image: As in its file.
        record: Of the prediction; where it is of a region, only this is compared.
        mask: Predicted label values.
        far: In what the image is far outside, and was segmented anyway.
    """
    if isinstance(image.header, Slide):
        return {}  # a slide with its glass is like no picture that was cut out of one
    fingerprint = meta.get("fingerprint")
    if "region" in record:
        box = tuple(slice(*ends) for ends in record["region"])
        faults = _without_extent(outside_training(fingerprint, _part(image, box), plan, {}, mask[box]))  # volumes may be any
    else:
        faults = outside_training(fingerprint, image, plan, record["volume_ml"], mask)
    found = {"outside_training": faults, "needs_review": True, "look_at": True} if faults else {}
    return found | ({"anyway": True} if far else {})


def _part(image: Image, box: tuple[slice, ...]) -> Image:
    return replace(image, data=image.data[(slice(None), *box)])


def _without_extent(faults: Sequence[str]) -> list[str]:
    return [fault for fault in faults if not fault.startswith("extent")]
