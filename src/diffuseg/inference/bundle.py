"""A model as a MONAI bundle: a folder that `monai.bundle` runs, with `diffuseg` installed; its masks are those of `predict`.

configs/inference.json   the images of a folder, one by one: read, segmented, written
configs/metadata.json    what goes in and comes out, and which packages it needs
models/model.safetensors the checkpoint, without the names of its cases
docs/README.md           the model card
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffuseg import __version__
from diffuseg.atomic_io import atomic_write, write_json
from diffuseg.checkpoint import copy_without_names, load_checkpoint, read_meta, versions
from diffuseg.data.io import NIFTI
from diffuseg.errors import UserError
from diffuseg.inference.card import card_of
from diffuseg.inference.checkpoints import model_file
from diffuseg.inference.model import NOTICE, load
from diffuseg.inference.sampling import SamplingOptions

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
USAGE = """    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir IMAGES

`IMAGES` holds one NIfTI file per case; masks are written into `eval`, or `--output_dir`. It needs `pip install diffuseg fire`.
`network_def` is no network but a whole prediction: from a file's grid to that of the model, draws, and back."""


def export_bundle(model: str, out: Path, options: SamplingOptions | None = None) -> list[Path]:
    """Write a bundle into a folder that is not there yet.

    Args:
        model: A checkpoint, a run, or the name of a packaged model.
        out: The folder.
        options: Draws, steps and sampler that the bundle asks for; None: what the model recommends.

    Returns:
        The files.

    Raises:
        UserError: There is such a folder, or no such model, or one that has several channels in files of their own.
    """
    if out.exists():
        raise UserError("is there already", file=out, do="Give another --out")
    file = model_file(model)
    loaded = load(file, "cpu")
    if loaded.plan.file_ending not in NIFTI or len(loaded.plan.channels) > 1:
        raise UserError(f"{loaded.name}: a bundle here takes one NIfTI file of one channel per case", file=file)
    chosen = loaded.resolve(options or SamplingOptions())
    asked = {"draws": chosen.draws, "steps": chosen.steps, "sampler": chosen.sampler, "seed": 0, "anyway": False}
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".bundle-") as place:
        made = Path(place) / "bundle"
        copy_without_names(file, made / "models" / "model.safetensors")
        load_checkpoint(made / "models" / "model.safetensors")
        write_json(made / "configs" / "inference.json", _inference(asked, max(loaded.plan.labels.values())))
        write_json(made / "configs" / "metadata.json", _metadata(read_meta(file)))
        atomic_write(made / "docs" / "README.md", card_of(file, USAGE))
        shutil.move(made, out)
    return sorted(path for path in out.rglob("*") if path.is_file())


def _inference(asked: dict[str, Any], highest: int) -> dict[str, Any]:
    """The workflow, in the words of MONAI's configurations."""
    return {
        "imports": ["$import pathlib"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "cpu",
        **asked,
        "images": "$sorted(str(p) for p in pathlib.Path(@dataset_dir).iterdir() if p.name.endswith(('.nii', '.nii.gz')))",
        "network_def": {
            "_target_": "diffuseg.load",
            "path": "$@bundle_root + '/models/model.safetensors'",
            "device": "@device",
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImage", "reader": "NibabelReader", "image_only": True},
                {"_target_": "EnsureChannelFirst"},
            ],
        },
        "inferer": f"$lambda x: @network_def.predict(x, {', '.join(f'{key}=@{key}' for key in asked)}).like_input()",
        "postprocessing": {
            "_target_": "SaveImage",
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_dtype": "uint8" if highest < 256 else "int32",
            "separate_folder": False,
            "resample": False,
            "print_log": False,
        },
        "run": ["$[@postprocessing(@inferer(@preprocessing(image))) for image in @images]"],
    }


def _metadata(meta: dict[str, Any]) -> dict[str, Any]:
    """What MONAI asks of a bundle to say of itself."""
    plan, made = meta["plan"], versions()
    names = {str(value): name for name, value in meta["classes"].items()}
    shape = ["*"] * (3 if plan["dims"] == 3 or plan["orientation"] is not None else 2)
    grid = {"type": "image", "num_channels": 1, "spatial_shape": shape, "is_patch_data": False}
    image = {"format": "magnitude", "modality": "n/a", "dtype": "float32", "value_range": [], "channel_def": {}}
    mask = {"format": "segmentation", "dtype": "uint8", "value_range": sorted(meta["classes"].values()), "channel_def": names}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by diffuseg {__version__}"},
        "monai_version": made["monai"],
        "pytorch_version": made["torch"],
        "numpy_version": made["numpy"],
        "required_packages_version": {"diffuseg": __version__, "nibabel": "5.2"},
        "name": str(meta.get("name", "model")),
        "task": f"segmentation of {', '.join(name for value, name in names.items() if value != '0')}",
        "description": f"{meta['method']} of diffuseg, trained on {plan['dataset']}",
        "authors": "see docs/README.md",
        "copyright": str(meta.get("dataset_licence") or "see docs/README.md"),
        "intended_use": NOTICE,
        "network_data_format": {
            "inputs": {"image": grid | image | {"channel_def": dict(enumerate(plan["channels"]))}},
            "outputs": {"pred": grid | mask},
        },
    }
