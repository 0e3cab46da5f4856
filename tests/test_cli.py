"""The command line: exit codes, one line per fault, nothing heavy before it is needed."""

import gc
import io
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel import nifti1
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

import diffuseg
from diffuseg.checkpoint import save_checkpoint
from diffuseg.cli import app
from diffuseg.cli.app import beside, import_nibabel_alone
from diffuseg.cli.evaluate import EmptyRule
from diffuseg.cli.predict import Fuse, _found
from diffuseg.cli.progress import ProgressBars
from diffuseg.data.synthetic import make_dataset
from diffuseg.device import PrecisionName
from diffuseg.errors import UserError
from diffuseg.evaluation.metrics import Empty
from diffuseg.inference.export import ETA, FORMATS
from diffuseg.inference.fusion import FUSIONS
from diffuseg.inference.wording import amounts
from diffuseg.methods import METHODS
from diffuseg.pulse import beat
from diffuseg.train import loop
from tests.inference.oracle import make_plan
from tests.signals import arrives

SHAPE = (10, 12, 9)


def call(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result, *says: str) -> None:
    """One line that says it, exit code 2, nothing of Python."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(text in result.stderr for text in says), result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("made") / "data", cases=3, shape=SHAPE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    labels = {"background": 0, "head": 1, "tail": 2}
    plan = make_plan(patch=SHAPE, widths=(8, 8), normalisation=("zscore",), intensity=(), labels=labels)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    save_checkpoint(path, METHODS["concat"](plan, METHODS["concat"].config_class()), {"name": "made/concat"})
    return path


def test_importing_the_commands_imports_nothing_heavy():
    heavy = ("torch", "monai", "matplotlib", "nibabel", "scipy", "SimpleITK", "numpy", "rich.progress")
    code = f"import sys, diffuseg, diffuseg.cli; print([name for name in {heavy!r} if name in sys.modules])"
    source = str(Path(diffuseg.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_predict_imports_what_it_needs_alone(checkpoint, tmp_path):
    """Of libraries for other formats, for measures, tables and pictures nothing; of scipy no part."""
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii.gz")
    unneeded = ("matplotlib", "monai", "tifffile", "SimpleITK", "highdicom", "pandas", "tensorboard", "onnx", "sympy")
    unneeded += tuple(f"scipy.{part}" for part in ("stats", "ndimage", "optimize", "spatial", "special", "linalg", "sparse"))
    unneeded += (
        "pydicom",
        "torch._inductor",
        "torch.utils.tensorboard",
        "diffuseg.train",
        "diffuseg.reports",
        "diffuseg.viewer",
    )
    places = [str(checkpoint), str(tmp_path / "scan.nii.gz"), "--out", str(tmp_path / "out")]
    arguments = ["predict", *places, "--draws", "1", "--steps", "1"]
    code = (
        f"import sys; from diffuseg.cli import app; app({arguments!r}, standalone_mode=False)\n"
        f"print([name for name in {unneeded!r} if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(diffuseg.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert (tmp_path / "out" / "scan.nii.gz").is_file()
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("said", [None, "ACTIVE"])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(monkeypatch, said):
    """Before torch is imported, which is when it is read; that it has not been is held above."""
    monkeypatch.setenv("OMP_WAIT_POLICY", said or "")
    if said is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    found = []
    monkeypatch.setattr("diffuseg.cli.app", lambda **options: found.append(os.environ["OMP_WAIT_POLICY"]))
    diffuseg.cli.main()
    assert found == [said or "PASSIVE"]


def test_no_garbage_is_looked_for_among_objects_of_libraries(monkeypatch):
    """Neither while a command that needs torch works, nor when any command ends, however it does."""
    code = (
        "import gc; from diffuseg.cli.app import import_libraries; import_libraries()\n"
        "import sys; print(gc.isenabled(), 'torch' in sys.modules, gc.get_freeze_count() > 100_000 > len(gc.get_objects()))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(diffuseg.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["True"] * 3

    def end(**options):
        raise SystemExit(2)

    monkeypatch.setattr("diffuseg.cli.app", end)
    gc.unfreeze()
    with pytest.raises(SystemExit):
        diffuseg.cli.main()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


def test_nibabel_that_somebody_else_imported_stays_as_it_is():
    """Here it found pydicom, which knows what a DICOM extension of a NIfTI file says."""
    import_nibabel_alone()
    assert nifti1.have_dicom and sys.modules["pydicom"] is not None


def test_help_and_version():
    shown = call("--help")
    assert shown.exit_code == 0
    named = (
        "plan",
        "train",
        "audit",
        "predict",
        "curve",
        "calibrate",
        "evaluate",
        "border",
        "compare",
        "ambiguity",
        "report",
        "demo-data",
    )
    for command in (*named, "view"):
        assert command in shown.output
        assert call(command, "--help").exit_code == 0
    assert call("--version").output == f"diffuseg {diffuseg.__version__}\n"
    assert call("predict").exit_code == 2


def test_names_that_help_lists_are_those_of_the_code():
    """Help is printed without importing what is heavy, so these names are written twice."""
    assert {rule.value for rule in EmptyRule} == set(get_args(Empty))
    assert [fuse.value for fuse in Fuse] == list(FUSIONS)
    commands = get_command(app).commands  # type: ignore[attr-defined]
    texts = {(name, option.name): getattr(option, "help", "") for name in commands for option in commands[name].params}
    kinds = {"mask": [], "image_label": []}
    for name, cls in METHODS.items():
        if cls.__module__.startswith("diffuseg."):
            kinds[cls.supervision].append(name)
    mask, label = (", ".join(names) for names in kinds.values())
    assert texts["train", "method"] == f"{mask}; from image-level labels: {label}."
    *first, last = get_args(PrecisionName)
    assert texts["train", "precision"] == f"{', '.join(first)} or {last}."
    assert texts["export", "sampler"] == f"{' or '.join(ETA)}."
    assert texts["export", "fmt"] == f"{', '.join(FORMATS)}, or monai: a bundle."
    assert texts["predict", "map_"] == f"Kind of saliency map ({label})."
    assert texts["train", "labels"].startswith(f"Image-level labels for {label.replace(', ', ' and ')}:")


def test_from_made_up_data_to_an_evaluation(tmp_path, checkpoint):
    done = call("demo-data", tmp_path / "data", "--cases", 2, "--seed", 4)
    assert done.exit_code == 0 and "2 volumes" in done.output
    for scan in (tmp_path / "data" / "imagesTr").iterdir():  # a corner is enough
        small = nib.load(scan).slicer[12:22, 14:26, 12:21]
        nib.save(small, tmp_path / scan.name)
        name = scan.name.replace("_0000", "")
        mask = nib.load(tmp_path / "data" / "labelsTr" / name).slicer[12:22, 14:26, 12:21]
        (tmp_path / "truth").mkdir(exist_ok=True)
        nib.save(mask, tmp_path / "truth" / name)
    scans = sorted(tmp_path.glob("*.nii.gz"))
    done = call("predict", checkpoint, *scans, "--out", tmp_path / "out", "--draws", 2, "--steps", 2)
    assert done.exit_code == 0, done.output
    assert "made/concat" in done.stdout and "2 finished" in done.stdout and "research" in done.stdout
    record = json.loads((tmp_path / "out" / "case_001.json").read_text())
    assert (record["draws"], record["steps"], len(record["seeds"])) == (2, 2, 2)
    done = call("evaluate", tmp_path / "out", tmp_path / "truth", "--out", tmp_path / "scores", "--empty", "zero")
    assert done.exit_code == 0 and "Dice" in done.stdout
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["cases"] == 2


def test_failed_cases_come_last_with_their_reason_and_code_3(tmp_path, data, checkpoint):
    scans = tmp_path / "scans"
    scans.mkdir()
    for scan in (data / "imagesTr").iterdir():
        (scans / scan.name).write_bytes(scan.read_bytes())
    broken = scans / "case_001_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    arguments = ("predict", checkpoint, scans, "--out", tmp_path / "out", "--draws", 1, "--steps", 1)
    done = call(*arguments)
    assert done.exit_code == 3, done.output
    complaint = done.stderr.strip().splitlines()[-1]
    assert complaint.startswith("failed case_001: ") and "truncated" in complaint and "Traceback" not in done.output
    assert "2 finished, 1 failed" in done.stdout
    again = call(*arguments, "--seed", 1)
    assert again.exit_code == 3 and "2 skipped, 1 failed" in again.stdout and "seed 0, not 1" in again.stdout
    alone = call("predict", checkpoint, broken, "--out", tmp_path / "other", "--draws", 1)
    assert alone.exit_code == 2 and "failed case_001" in alone.stderr


def test_what_the_user_can_mend_is_one_line(tmp_path, data, checkpoint):
    out = ("--out", tmp_path / "out")
    scan = data / "imagesTr" / "case_000_0000.nii.gz"
    refused(call("predict", "liver", scan, *out), "liver", "Packaged models")
    refused(call("predict", scan, scan, *out), str(scan))
    refused(call("predict", checkpoint, tmp_path / "none.nii.gz", *out), "no such file")
    refused(call("predict", checkpoint, scan, *out, "--sampler", "x"), "Known: ancestral")
    refused(call("predict", checkpoint, scan, *out, "--draws", 0), "at least one")
    refused(call("predict", checkpoint, scan, *out, "--device", "tpu"), "Known: cpu")
    refused(call("predict", checkpoint, scan, *out, "--no-prob", "--prob-dtype", "uint8"), "no probabilities are written")
    refused(call("predict", checkpoint, scan, "--out", checkpoint), "cannot be written")
    refused(call("plan", tmp_path / "none", *out), "no such folder")
    refused(call("evaluate", tmp_path / "none", data / "labelsTr", *out), "no such folder")
    refused(call("evaluate", data / "labelsTr", data / "labelsTr", *out, "--nsd-tolerance", -1), "tolerance")
    refused(call("evaluate", data / "labelsTr", data / "labelsTr", "--images", data / "imagesTr"), "--images", "Give --out")
    refused(call("train", tmp_path / "none", *out), "no such folder")
    refused(call("train", data, *out, "--method", "gan"), "Known: unet, ssn, concat, distributional, cdal")
    refused(call("demo-data", checkpoint), str(checkpoint))
    assert not (tmp_path / "out").exists()


def test_bars_show_the_case_and_what_is_left():
    shown = io.StringIO()
    with ProgressBars(Console(file=shown, force_terminal=True, width=120)) as bars:
        bars.case("liver [1]", 2, 5)
        bars.draw(3, 8)
        bars.progress.refresh()
    assert all(text in shown.getvalue() for text in ("2/5", "liver [1]", "3/8 draws", "left"))


def test_without_a_terminal_lines_tell_that_a_case_is_at_work(capsys):
    now = [0.0]
    with ProgressBars(Console(file=io.StringIO(), width=80), passes=4) as bars:
        bars.case("liver", 0, 2)
        bars.within.clock, bars.within.started, bars.within.last = lambda: now[0], 0.0, 0.0
        for _ in range(16):  # four tiles of each of two draws' two steps
            now[0] += 10
            beat(0.25)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1/2 liver" and lines[-1] == "liver: 100% of the draws, 0:00:00 left (0:02:40 so far)"
    assert "liver: 25% of the draws, 0:02:00 left (0:00:40 so far)" in lines and len(lines) <= 12


def test_plan_prints_reasons_and_never_replaces_an_edited_plan(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("plan", data)
    path = tmp_path / "synthetic-organ_plan.json"
    assert done.exit_code == 0 and "reason" in done.stdout and path.name in done.stdout
    path.write_text("edited")
    refused(call("plan", data), "a plan already")
    assert path.read_text() == "edited"
    assert call("plan", data, "--out", path, "--overwrite").exit_code == 0
    assert json.loads(path.read_text())["labels"] == {"background": 0, "head": 1, "tail": 2}


def test_every_option_of_train_reaches_the_loop(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "train", lambda settings, *_: seen.append(settings) or tmp_path / "best.safetensors")
    done = call(
        *("train", "set", "--out", "run", "--method", "unet", "--fold", 3, "--plan", "p.json", "--max-minutes", 2.5),
        *("--preset", "cdal/cxr", "--set", "T=2", "--set", "train.ema=0.9", "--resume", "--seed", 7, "--device", "cpu"),
        *("--precision", "bf16", "--val-every", 50, "--steps", 9, "--labels", "l.csv", "--patience", 4, "--log-to", "wandb"),
    )
    assert done.exit_code == 0 and "best.safetensors" in done.stdout
    assert seen == [
        loop.TrainSettings(
            Path("set"), "unet", Path("run"), 3, Path("p.json"), 9, 2.5, "cdal/cxr", ["T=2", "train.ema=0.9"],
            True, 7, "cpu", "bf16", 50, Path("l.csv"), None, 4, ["wandb"],
        )
    ]  # fmt: skip
    call("train", "set", "--out", "run")
    assert seen[1] == loop.TrainSettings(Path("set"), "distributional", Path("run"))


def test_an_interrupt_is_one_line_and_code_130(monkeypatch):
    def interrupted(settings, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    done = call("train", "set", "--out", "run")
    assert done.exit_code == 130 and done.stderr == "interrupted\n" and not done.stdout


def test_sigterm_ends_a_command_as_an_interrupt_does(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop, "train", lambda settings, *_: arrives(signal.SIGTERM))
    done = call("train", "set", "--out", "run")
    assert done.exit_code == 143 and done.stderr == "terminated\n" and not done.stdout
    assert signal.getsignal(signal.SIGTERM) is before


def test_quiet_prints_errors_and_warnings_only_and_verbose_says_where(monkeypatch):
    def fails(settings, *_):
        print("chatter")
        raise UserError("wrong")

    monkeypatch.setattr(loop, "train", fails)
    assert call("train", "set", "--out", "run").stdout == "chatter\n"
    quiet, verbose = (call("train", "set", "--out", "run", option) for option in ("-q", "--verbose"))
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (2, "", "error: wrong\n")
    assert verbose.stdout == "chatter\n" and "in fails" in verbose.stderr and verbose.stderr.endswith("error: wrong\n")
    assert call("train", "set", "--out", "run").stderr == "error: wrong\n"  # the next command is neither


def test_predict_says_what_it_found(tmp_path, data, checkpoint):
    scan = data / "imagesTr" / "case_002_0000.nii.gz"
    asked = ("predict", checkpoint, scan, "--draws", 2, "--steps", 2, "--device", "cpu")
    done = call(*asked, "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "case_002.json").read_text())
    low, high = record["volume_ml_90"]["head"]
    assert f"case_002: head {record['volume_ml']['head']:.3g} ml [{low:.3g}, {high:.3g}] raw" in done.stdout, done.output
    assert done.stderr.startswith("1/1 case_002\n") and "in the training" not in done.stdout
    quiet = call(*asked, "--out", tmp_path / "quiet", "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "") and (tmp_path / "quiet" / "case_002.json").exists()


def test_three_classes_are_shown_however_narrow_the_terminal_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    names = ["anterior", "posterior", "left", "right", "tail"]
    record = {"volume_ml": dict.fromkeys(names, 1.0), "volume_ml_90": {}, "draws": 1, "seen_in": "training"}
    told = lambda number: _found("a", record | {"volume_ml": dict.fromkeys(names[:number], 1.0)})
    assert told(3) == "a: anterior 1 ml, posterior 1 ml, left 1 ml; this image was in the training of the model"
    assert told(5).startswith("a: anterior 1 ml, posterior 1 ml, left 1 ml, and 2 more;")


def test_an_input_that_is_not_there_is_said_before_the_model_is_looked_at(tmp_path):
    done = call("predict", tmp_path / "no.safetensors", tmp_path / "nofolder", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "nofolder: no such file or folder" in " ".join(done.stderr.split()), done.stderr


def test_pictures_are_measured_in_pixels_or_mm2():
    record = {"volume_ml": {"body": 0.012}, "volume_ml_90": {"body": [0.01, 0.02]}, "draws": 4, "grid": {"shape": [8, 8]}}
    assert amounts(record | {"source": "/a/b.PNG"}) == ["body 12 pixels [10, 20] raw"]
    assert amounts(record | {"source": "/a/b.nii.gz"}) == ["body 12 mm2 [10, 20] raw"]
    single = {"draws": 1, "volume_ml_90": {"body": [0.012, 0.012]}, "grid": {"shape": [8, 8, 8]}}
    assert amounts(record | single) == ["body 0.012 ml"]


def test_results_about_a_model_lie_beside_it(tmp_path):
    for name in ("best", "last"):
        (tmp_path / f"{name}.safetensors").touch()
    assert beside(str(tmp_path / "best.safetensors"), "curve") == tmp_path / "curve"
    assert beside(str(tmp_path / "last.safetensors"), "curve") == tmp_path / "curve_last"
    assert beside("hippocampus", "curve") == Path("hippocampus_curve")


def test_evaluate_and_report_print_without_a_place_to_write(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("evaluate", data / "labelsTr", data / "labelsTr")
    assert done.exit_code == 0 and "head" in done.stdout and not list(tmp_path.iterdir()), done.output
    done = call("evaluate", data / "labelsTr", data / "labelsTr", "--out", "eval")
    assert done.exit_code == 0, done.output
    shown = call("report", "eval")
    assert shown.exit_code == 0 and "head" in shown.stdout and [p.name for p in tmp_path.iterdir()] == ["eval"]


def test_a_fault_of_several_lines_is_printed_as_one(monkeypatch):
    def fails(settings, *_):
        raise UserError("first\n  second", file="a.nii.gz")

    monkeypatch.setattr(loop, "train", fails)
    assert call("train", "set", "--out", "run").stderr == "error: a.nii.gz: first second\n"


def test_what_the_machine_refuses_is_one_line_too(monkeypatch):
    monkeypatch.setattr(loop, "train", lambda settings, *_: Path("é" * 300).read_text())
    refused(call("train", "set", "--out", "run"), "File name too long", "--verbose")


def test_the_command_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "diffuseg.cli", "plan", str(tmp_path / "none")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'none'}: no such folder\n" and not done.stdout


def test_an_array_and_the_command_agree(tmp_path, data, checkpoint):
    """The same seed in Python and in the shell is the same result."""
    scan = data / "imagesTr" / "case_002_0000.nii.gz"
    p = diffuseg.load(checkpoint, "cpu").predict(scan, draws=2, steps=2, seed=3)
    call("predict", checkpoint, scan, "--out", tmp_path, "--draws", 2, "--steps", 2, "--seed", 3, "--device", "cpu")
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "case_002.nii.gz").dataobj), p.mask)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc gives freed memory back, others are left as they are")
def test_freed_memory_is_not_asked_for_again():
    """How many pages the system makes while arrays of a layer's size come and go."""
    code = """if True:
        import resource, sys
        from diffuseg.cli import keep_freed_memory
        if sys.argv[1] == "kept":
            keep_freed_memory()
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        before = faults()
        for i in range(12):
            arrays = [bytearray(12 << 20) for _ in range(3)]
            del arrays
        print(faults() - before)
    """
    kept, given_back = (int(subprocess.check_output([sys.executable, "-c", code, how])) for how in ("kept", ""))
    assert kept < given_back / 3
